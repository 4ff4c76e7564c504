"""Random search with weight sharing: the baseline that every search should beat."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Evaluate, Memory, Method, Space, Tables, learnt
from gaea_jax.nets import Mixture


def random_search(*, candidates: int = 100) -> Method:
    """Trains the shared weights on uniformly random paths and keeps the best of some random genotypes.

    A search derives at every report, and here each derivation evaluates all candidates: have few reports.

    Args:
      candidates: number of genotypes that a derivation draws and evaluates, 1 or more.

    Returns:
      The `Method`; it has no architecture parameters, and its ``derive`` needs an evaluation.

    Raises:
      UsageError: ``candidates`` is below 1.

    References:
      Li and Talwalkar, `Random Search and Reproducibility for Neural Architecture Search
      <https://arxiv.org/abs/1902.07638>`_, 2019, section 3.2
    """
    if candidates < 1:
        raise UsageError("candidates", f"must be 1 or more, not {candidates}")

    def weights(space: Space, arch: Arch) -> Tables:
        return {name: choice.uniform() for name, choice in learnt(space).items()}

    def mixture(
        space: Space, arch: Arch, memory: Memory, key: jax.Array, step: jax.typing.ArrayLike, phase: str
    ) -> Mixture:
        uniform = weights(space, arch)
        if phase == "eval":
            return Mixture(uniform)
        scores = {}
        for k, (name, table) in zip(jax.random.split(key, len(uniform)), uniform.items(), strict=True):
            # The rule of the space makes a genotype of these scores. A random option leads each row; where the rule may
            # not take it, or keeps only some of the rows, the noise decides, which prefers none of those that are left.
            lead = jax.random.randint(k, table.shape[:-1], 0, table.shape[-1])
            noise = jax.random.uniform(jax.random.fold_in(k, 1), table.shape, table.dtype)
            scores[name] = jax.nn.one_hot(lead, table.shape[-1], dtype=table.dtype) + noise
        return Mixture.derived(space.select(scores))

    def derive(space: Space, arch: Arch, memory: Memory, key: jax.Array, evaluate: Evaluate | None) -> object:
        if evaluate is None:
            raise UsageError("objective", "random search derives by accuracy on held-out images; it needs 'bilevel'")
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return max((space.random(rng) for _ in range(candidates)), key=evaluate)

    return Method(
        init=lambda space, key: {},
        weights=weights,
        mixture=mixture,
        regularizer=lambda space, arch, mixture: jnp.zeros(()),
        optimizer=lambda space: optax.with_extra_args_support(optax.identity()),
        derive=derive,
    )
