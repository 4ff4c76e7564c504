"""Relaxed networks: the mixture says which candidate operations run and what they weigh, and comes as an argument."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.lowering import gradient_once
from gaea_jax.nets.ops import Node, nas_bench_201_operation
from gaea_jax.nets.skeleton import skeleton
from gaea_jax.spaces.base import check_tables
from gaea_jax.spaces.nas_bench_201 import EDGES, NASBench201


@flax.struct.dataclass
class Mixture:
    """What a cell reads of the architecture.

    Attributes:
      weights: for each choice of the space its table of mixture weights, float32; differentiable.
      active: for each choice a bool table of the same shape: only these operations are computed, one in each row for
        NAS-Bench-201. None computes all.
      inactive: what the weight of another operation does: ``"skip"`` nothing, ``"scalar"`` is added to the features as
        a number. Where that weight is 0 and only its gradient counts, this is GDAS.
    """

    weights: dict[str, jax.Array]
    active: dict[str, jax.Array] | None = None
    inactive: str = flax.struct.field(pytree_node=False, default="skip")

    @classmethod
    def derived(cls, selection: Mapping[str, jax.Array]) -> Self:
        """The derived network within the supernet: what is selected runs, with weight 1.

        Args:
          selection: bool tables, as a space's ``select`` or ``encode`` returns them.

        Returns:
          The mixture.
        """
        return cls({name: table.astype(float) for name, table in selection.items()}, dict(selection))


@functools.singledispatch
def supernet(
    space: Any,
    *,
    channels: int,
    cells: int,
    num_classes: int,
    dtype: DTypeLike = jnp.float32,
    partial: int = 1,
    stem: str = "cifar",
) -> nn.Module:
    """The relaxed network of a space.

    Args:
      space: a search space, such as ``get_space("nas_bench_201")``.
      channels: C, the width of the first stage.
      cells: number of cells (for NAS-Bench-201 the number in each of the three stages).
      num_classes: number of logits.
      dtype: compute type, to which a cell rounds the mixture; parameters and BatchNorm statistics are float32
        whatever it is.
      partial: K of PC-DARTS: operations see the first 1 / K of the channels. Of the DARTS space only.
      stem: ``"cifar"``, or ``"imagenet"``, which divides the size of the image by 8 before the first cell. The latter
        of the DARTS space only.

    Returns:
      A Linen module with ``apply(variables, x, mixture, train=...)``: normalised images x [B, H, W, channels of
      the image], H and W divisible by 4 (by 32 with the ImageNet stem), and a `Mixture` to logits [B, num_classes],
      float32 at least. Collections: ``params`` and ``batch_stats``.

    Raises:
      TypeError: there is no supernet for this kind of space.
      UsageError: on ``method`` or ``stem``, if the space has no partial channels or no such stem; on ``channels``,
        ``cells`` or ``partial`` for a size it cannot have; from ``apply``, on ``mixture`` for tables that are not those
        of the space, and on ``dataset`` for images of another shape.
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
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """[B, H, W, C] and a mixture with the table ``"cell"`` to [B, H, W, C]."""
        weights = mixture.weights["cell"].astype(self.dtype)
        # All operations have parameters from the start, whichever is active then.
        active = None if mixture.active is None or self.is_initializing() else mixture.active["cell"]
        # Where few edges pool, a map that all of them share is seldom needed.
        of = Node.of if active is None else Node
        nodes = [of(gradient_once(x))]
        for node in (1, 2, 3):
            total = jnp.zeros_like(x)
            for edge, (target, source) in enumerate(EDGES):
                if target != node:
                    continue
                operations = [
                    _operation(self.space, edge, option, self.dtype, train)
                    for option in range(len(self.space.operations))
                ]
                if active is None:
                    for operation in operations:
                        total += operation(self, nodes[source], weights[edge])
                    continue
                chosen = jnp.argmax(active[edge])
                total += nn.switch(chosen, operations, self, nodes[source], weights[edge])
                if mixture.inactive == "scalar":
                    total += jnp.sum(jnp.where(active[edge], 0, weights[edge]))
            nodes.append(of(gradient_once(total)))
        return nodes[3].features


def _operation(
    space: NASBench201, edge: int, option: int, dtype: DTypeLike, train: bool
) -> Callable[[nn.Module, Node, jax.Array], jax.Array]:
    """One candidate operation of an edge as a function (cell, node, weights of the edge) to its weighted features."""
    operation, (target, source) = space.operations[option], EDGES[edge]

    def run(cell: nn.Module, node: Node, weights: jax.Array) -> jax.Array:
        if operation == "none":
            return jnp.zeros_like(node.features)
        name = f"edge_{target}_{source}_{operation}"
        return nas_bench_201_operation(
            operation, node, weights[option], affine=False, dtype=dtype, train=train, name=name
        )

    return run


# Compiled for itself, so that it is traced once for all cells of a stage.
@functools.partial(jax.jit, static_argnums=(0, 4))
def _cell(module: MixedCell, variables: Any, x: jax.Array, mixture: Mixture, train: bool) -> Any:
    return module.apply(variables, x, mixture, train, mutable=["batch_stats"] if train else [])


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
        if mixture.active is not None:
            check_tables(self.space.choices, mixture.active, "mixture")

        def cell(x: jax.Array, name: str) -> jax.Array:
            if self.is_initializing():
                return MixedCell(self.space, self.dtype, name=name)(x, mixture, train)
            own = {kind: tables[name] for kind, tables in self.variables.items() if name in tables}
            x, new = _cell(MixedCell(self.space, self.dtype, parent=None), own, x, mixture, train)
            if train:
                self.put_variable("batch_stats", name, new["batch_stats"])
            return x

        return skeleton(
            x,
            cell,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            dtype=self.dtype,
            train=train,
        )


@supernet.register
def _supernet_nas_bench_201(
    space: NASBench201, *, partial: int = 1, stem: str = "cifar", **size: Any
) -> NASBench201Supernet:
    if partial != 1:
        raise UsageError("method", f"needs partial channels, which {space.name} has not; the DARTS space has them")
    if stem != "cifar":
        raise UsageError("stem", f"must be 'cifar' for {space.name}, not {stem!r}")
    return NASBench201Supernet(space, **size)
