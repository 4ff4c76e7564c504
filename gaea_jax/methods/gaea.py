"""GAEA: the mixture is the point on the simplex itself, moved by exponentiated gradient."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from gaea_jax.methods.base import Arch, Method, Space, Tables, clipped, derive_heaviest, entropic_regularizer
from gaea_jax.nets import Mixture
from gaea_jax.optim import exponentiated_gradient


def gaea(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    min_prob: float = 1e-5,
    clamp: Literal["shift-invariant", "release"] = "shift-invariant",
) -> Method:
    """The geometry-aware method (GAEA, Eq. 8): no softmax in the forward pass, multiplicative updates.

    Args:
      learning_rate: step of the exponentiated gradient, a number or a schedule of the architecture step.
      clip_norm: largest global norm of the architecture gradient, or None.
      entropy_weight: factor of the divergence from the uniform mixture, in nats; 0 in the paper.
      min_prob: floor of a mixture weight, which keeps zero from absorbing; 1e-5 as released, 0 is the paper's update.
      clamp: ``"release"`` for the released code's clamp of the unnormalised product.

    Returns:
      The `Method`; ``arch`` are tables of mixture weights, each row a point of the simplex, uniform at the start.

    References:
      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, section 3.3
    """

    def init(space: Space, key: jax.Array) -> Arch:
        return {name: jnp.full(c.shape, 1 / len(c.options), float) for name, c in space.choices.items()}

    def weights(space: Space, arch: Arch) -> Tables:
        return arch

    return Method(
        init=init,
        weights=weights,
        mixture=lambda space, arch, key, step, phase: Mixture(arch),
        regularizer=entropic_regularizer(entropy_weight, weights),
        optimizer=clipped(exponentiated_gradient(learning_rate, min_prob=min_prob, clamp=clamp), clip_norm),
        derive=derive_heaviest(weights),
    )
