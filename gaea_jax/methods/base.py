"""What a search method is: a relaxation of the discrete choice and an optimiser that fits its geometry."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaea_jax import simplex
from gaea_jax.nets import Mixture
from gaea_jax.spaces import SearchSpace

Space = SearchSpace[Any]
Arch = dict[str, jax.Array]


class Method(NamedTuple):
    """A search method as a record of pure functions.

    Attributes:
      init: ``(space, key) -> arch``, the architecture parameters: for each choice of the space one array of its
        shape, float32 (float64 under x64).
      mixture: ``(space, arch) -> Mixture``, the point at which the supernet is evaluated; differentiable in
        ``arch``.
      regularizer: ``(space, arch, mixture) -> scalar`` that is added to the loss, in nats.
      optimizer: transform over ``arch``.
      derive: ``(space, arch) -> genotype``, on the host.
    """

    init: Callable[[Space, jax.Array], Arch]
    mixture: Callable[[Space, Arch], Mixture]
    regularizer: Callable[[Space, Arch, Mixture], jax.Array]
    optimizer: optax.GradientTransformationExtraArgs
    derive: Callable[[Space, Arch], Any]


def entropic_regularizer(weight: float) -> Callable[[Space, Arch, Mixture], jax.Array]:
    """The divergence of the mixture from the uniform one, summed over edges: it pulls *towards* uniform.

    The released GAEA code calls its factor ``arch_weight_decay``.

    Args:
      weight: factor, 0 for none.

    Returns:
      A regulariser for `Method`, in nats.
    """

    def regularizer(space: Space, arch: Arch, mixture: Mixture) -> jax.Array:
        divergences = [simplex.kl(w, simplex.uniform_like(w)).sum() for w in mixture.weights.values()]
        return weight * jnp.sum(jnp.stack(divergences))

    return regularizer


def clipped(optimizer: optax.GradientTransformation, norm: float | None) -> optax.GradientTransformationExtraArgs:
    """An optimiser behind a clip of the global norm of its gradient.

    Args:
      optimizer: transform over the architecture.
      norm: largest norm, or None for no clip.

    Returns:
      The transform.
    """
    if norm is None:
        return optax.with_extra_args_support(optimizer)
    return optax.chain(optax.clip_by_global_norm(norm), optimizer)
