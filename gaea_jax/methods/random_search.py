"""Random search with weight sharing: the baseline that every search should beat."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Evaluate, Method, Space, Tables
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
        return {name: jnp.full(c.shape, 1 / len(c.options), float) for name, c in space.choices.items()}

    def mixture(space: Space, arch: Arch, key: jax.Array, step: jax.typing.ArrayLike, phase: str) -> Mixture:
        uniform = weights(space, arch)
        if phase == "eval":
            return Mixture(uniform)
        path = {}
        for k, (name, choice) in zip(jax.random.split(key, len(uniform)), space.choices.items(), strict=True):
            rows, options = choice.shape
            path[name] = jax.nn.one_hot(jax.random.randint(k, (rows,), 0, options), options, dtype=uniform[name].dtype)
        return Mixture(path, {name: one_hot.astype(bool) for name, one_hot in path.items()})

    def derive(space: Space, arch: Arch, key: jax.Array, evaluate: Evaluate | None) -> object:
        if evaluate is None:
            raise UsageError("objective", "random search derives by accuracy on held-out images; it needs 'bilevel'")
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return max((space.random(rng) for _ in range(candidates)), key=evaluate)

    return Method(
        init=lambda space, key: {},
        weights=weights,
        mixture=mixture,
        regularizer=lambda space, arch: jnp.zeros(()),
        optimizer=optax.with_extra_args_support(optax.identity()),
        derive=derive,
    )
