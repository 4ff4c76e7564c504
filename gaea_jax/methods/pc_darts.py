"""PC-DARTS: operations see a part of the channels, and every edge has a weight; in DARTS' geometry and in GAEA's."""

from types import MappingProxyType
from typing import Literal

import optax

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Method
from gaea_jax.methods.darts import darts
from gaea_jax.methods.gaea import gaea


def pc_darts(
    learning_rate: optax.ScalarOrSchedule = 6e-4,
    *,
    partial: int = 4,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    weight_decay: float = 1e-3,
) -> Method:
    """Partial channels with edge normalisation: logits of operations and edges, moved by Adam.

    Args:
      learning_rate: step of Adam (betas 0.5 and 0.999), a number or a schedule of the architecture step.
      partial: K; an operation sees the first of K parts of the channels. The paper has 4 on CIFAR-10, 2 on ImageNet.
      clip_norm: largest global norm of the architecture gradient, or None.
      entropy_weight: factor of the divergence of the operations' mixture from uniform, in nats.
      weight_decay: L2 factor that is added to the gradient of the logits.

    Returns:
      The `Method`; ``arch`` are tables of logits as for `darts`, those of the edges too.

    Raises:
      UsageError: ``partial`` is below 1.

    References:
      Xu et al, `PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search
      <https://arxiv.org/abs/1907.05737>`_, 2020, section 3
    """
    method = darts(
        learning_rate, edges=True, clip_norm=clip_norm, entropy_weight=entropy_weight, weight_decay=weight_decay
    )
    return _partial(method, partial)


def gaea_pc_darts(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    edge_learning_rate: optax.ScalarOrSchedule = 0.1,
    partial: int = 4,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    min_prob: float = 1e-5,
    clamp: Literal["shift-invariant", "release"] = "shift-invariant",
) -> Method:
    """PC-DARTS in GAEA's geometry: points on the simplex, of operations and of edges, moved by exponentiated gradient.

    Args:
      learning_rate: step of the operations, a number or a schedule of the architecture step.
      edge_learning_rate: step of the edges, likewise.
      partial: as for `pc_darts`.
      clip_norm: largest global norm of the architecture gradient, or None; 5 in the authors' search on ImageNet.
      entropy_weight: factor of the divergence of the operations' mixture from uniform, in nats; 0 in the paper.
      min_prob: floor of a weight, but those of edges, as for `gaea`.
      clamp: as for `gaea`.

    Returns:
      The `Method`; ``arch`` are points of the simplex as for `gaea`, those of the edges too.

    Raises:
      UsageError: ``partial`` is below 1.

    References:
      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, section 4.2 and appendix C.1
    """
    method = gaea(
        learning_rate,
        edge_learning_rate=edge_learning_rate,
        clip_norm=clip_norm,
        entropy_weight=entropy_weight,
        min_prob=min_prob,
        clamp=clamp,
    )
    return _partial(method, partial)


def _partial(method: Method, partial: int) -> Method:
    """The method on a supernet whose operations see the first of ``partial`` parts of the channels."""
    if partial < 1:
        raise UsageError("partial", f"must be 1 or more, not {partial}")
    return method._replace(net=MappingProxyType({"partial": partial}))
