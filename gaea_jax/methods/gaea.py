"""GAEA: the mixture is the point on the simplex itself, moved by exponentiated gradient."""

from typing import Literal

import jax
import optax

from gaea_jax.methods.base import Arch, Method, Space, Tables, clipped, derive_heaviest, entropic_regularizer, learnt
from gaea_jax.nets import Mixture
from gaea_jax.optim import exponentiated_gradient


def gaea(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    edge_learning_rate: optax.ScalarOrSchedule | None = None,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    min_prob: float = 1e-5,
    clamp: Literal["shift-invariant", "release"] = "shift-invariant",
) -> Method:
    """The geometry-aware method (GAEA, Eq. 8): no softmax in the forward pass, multiplicative updates.

    Args:
      learning_rate: step of the exponentiated gradient, a number or a schedule of the architecture step.
      edge_learning_rate: that of all choices but of operations, such as the weights of the edges into a node, which
        sum to 1. None does not learn those that weights may lack, so that every edge weighs 1; they have no floor, as
        in the released code: an edge whose weight has become 0 stays out.
      clip_norm: largest global norm of the architecture gradient, edges included, or None.
      entropy_weight: factor of the divergence from the uniform mixture, in nats; 0 in the paper.
      min_prob: floor of a mixture weight, which keeps zero from absorbing; 1e-5 as released, 0 is the paper's update.
      clamp: ``"release"`` for the released code's clamp of the unnormalised product.

    Returns:
      The `Method`; ``arch`` are tables of mixture weights, each row or segment a point of the simplex, uniform at
      the start. With an ``edge_learning_rate``, ``init`` raises UsageError on ``space`` if nothing but operations is
      chosen.

    References:
      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, section 3.3
    """

    def init(space: Space, key: jax.Array) -> Arch:
        choices = learnt(space, optional=edge_learning_rate is not None)
        return {name: choice.uniform() for name, choice in choices.items()}

    def weights(space: Space, arch: Arch) -> Tables:
        return arch

    def optimizer(space: Space) -> optax.GradientTransformationExtraArgs:
        choices = learnt(space, optional=edge_learning_rate is not None)
        segments = {name: choice.segments for name, choice in choices.items()}
        step = exponentiated_gradient(learning_rate, segments=segments, min_prob=min_prob, clamp=clamp)
        if edge_learning_rate is not None:
            inputs = exponentiated_gradient(edge_learning_rate, segments=segments, min_prob=min_prob, clamp=clamp)
            edges = exponentiated_gradient(edge_learning_rate, segments=segments)
            steps = {"operations": step, "inputs": inputs, "edges": edges}
            labels = {
                name: "operations" if choice.kind == "op" else "edges" if choice.optional else "inputs"
                for name, choice in choices.items()
            }
            step = optax.partition(steps, labels)
        return clipped(step, clip_norm)

    return Method(
        init=init,
        weights=weights,
        mixture=lambda space, arch, memory, key, step, phase: Mixture(arch),
        regularizer=entropic_regularizer(entropy_weight, weights),
        optimizer=optimizer,
        derive=derive_heaviest(weights),
    )
