"""Relaxed networks: every candidate operation runs, and the mixture that weighs them comes as an argument."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.nets.ops import Node, nas_bench_201_operation
from gaea_jax.nets.skeleton import skeleton
from gaea_jax.spaces.base import check_tables
from gaea_jax.spaces.nas_bench_201 import EDGES, NASBench201


@flax.struct.dataclass
class Mixture:
    """What a cell reads of the architecture.

    Attributes:
      weights: for each choice of the space its table of mixture weights, float32; differentiable.
    """

    weights: dict[str, jax.Array]


@functools.singledispatch
def supernet(space: Any, *, channels: int, cells: int, num_classes: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The relaxed network of a space.

    Args:
      space: a search space, such as ``get_space("nas_bench_201")``.
      channels: C, the width of the first stage.
      cells: number of cells (for NAS-Bench-201 the number in each of the three stages).
      num_classes: number of logits.
      dtype: compute type, to which a cell rounds the mixture; parameters and BatchNorm statistics are float32
        whatever it is.

    Returns:
      A Linen module with ``apply(variables, x, mixture, train=...)``: normalised images x [B, H, W, channels of
      the image], H and W divisible by 4, and a `Mixture` to logits [B, num_classes], float32 at least.
      Collections: ``params`` and ``batch_stats``.

    Raises:
      TypeError: there is no supernet for this kind of space.
      UsageError: from ``apply``, on ``mixture`` for tables that are not those of the space, and on ``dataset``
        for images of another shape.
    """
    raise TypeError(f"no supernet for a space of type {type(space).__name__}")


class MixedCell(nn.Module):
    """A NAS-Bench-201 cell in which every edge carries the weighted sum of its candidate operations.

    BatchNorm is not affine here, as in the papers' code: the mixture weights alone scale an operation.

    Attributes:
      space: the space that names the operations.
      dtype: compute type.
    """

    space: NASBench201
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] and weights [6, operations] to [B, H, W, C]."""
        weights = weights.astype(self.dtype)
        nodes = [Node.of(x)]
        for node in (1, 2, 3):
            total = jnp.zeros_like(x)
            for edge, (target, source) in enumerate(EDGES):
                if target != node:
                    continue
                for option, operation in enumerate(self.space.operations):
                    if operation == "none":
                        continue
                    total += nas_bench_201_operation(
                        operation,
                        nodes[source],
                        weights[edge, option],
                        affine=False,
                        dtype=self.dtype,
                        train=train,
                        name=f"edge_{target}_{source}_{operation}",
                    )
            nodes.append(Node.of(total))
        return nodes[3].features


class NASBench201Supernet(nn.Module):
    """The relaxed network of NAS-Bench-201; see `supernet`.

    Attributes:
      space: with or without the operation ``none``.
      channels: C.
      cells: N.
      num_classes: number of logits.
      dtype: compute type.
    """

    space: NASBench201
    channels: int
    cells: int
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """Images [B, H, W, channels of the image] to logits [B, num_classes]."""
        check_tables(self.space.choices, mixture.weights, "mixture")

        def cell(x: jax.Array, name: str) -> jax.Array:
            return MixedCell(self.space, self.dtype, name=name)(x, mixture.weights["cell"], train)

        return skeleton(
            x,
            cell,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            dtype=self.dtype,
            train=train,
        )


supernet.register(NASBench201, NASBench201Supernet)
