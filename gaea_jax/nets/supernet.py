"""Relaxed networks: the mixture says which candidate operations run and what they weigh, and comes as an argument."""

import functools
from collections.abc import Callable, Mapping, Sequence
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
        a number. Where that weight is 0 and only its gradient counts, this is GDAS. ``"probe"`` is NASP: the weight is
        taken to be 0 and has the gradient that it has there where all operations are computed. Operations that are not
        active run forward only, on the way back.
      transit: what the other cells read, where only some of a supernet are engine cells, see `supernet`. None is what
        those read.
    """

    weights: dict[str, jax.Array]
    active: dict[str, jax.Array] | None = None
    inactive: str = flax.struct.field(pytree_node=False, default="skip")
    transit: "Mixture | None" = None

    def at(self, engine: bool) -> "Mixture":
        """What an engine cell reads, or another."""
        return self if engine or self.transit is None else self.transit

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
    engine: str | tuple[int, ...] = "all",
    shared: bool = False,
) -> nn.Module:
    """The relaxed network of a space.

    Args:
      space: a search space, such as ``get_space("nas_bench_201")``.
      channels: C, the width of the first stage.
      cells: number of cells (for NAS-Bench-201 the number in each of the three stages).
      num_classes: number of logits.
      dtype: compute type, to which a cell rounds the mixture; parameters and BatchNorm statistics are float32
        whatever it is.
      partial: K of PC-DARTS: operations see the first 1 / K of the channels. Not of NAS-Bench-201.
      stem: ``"cifar"``, or ``"imagenet"``, which divides the size of the image by 8 before the first cell. The latter
        of the DARTS space only.
      engine: which cells are engine cells and read the mixture; the others read its ``transit``. ``"all"``, ``"none"``,
        the ``"first"`` or the ``"last"`` cell of either kind, or numbers of cells, counted from 0. Of the DARTS space.
      shared: whether an operation has one set of parameters in a cell for all edges that leave the same node, which
        then share its features (EnTranNAS). Of the DARTS space only.

    Returns:
      A Linen module with ``apply(variables, x, mixture, train=...)``: normalised images x [B, H, W, channels of
      the image], H and W divisible by 4 (by 32 with the ImageNet stem; any for NAS-Bench-1Shot1), and a `Mixture` to
      logits [B, num_classes], float32 at least. Collections: ``params`` and ``batch_stats``.

    Raises:
      TypeError: there is no supernet for this kind of space.
      UsageError: on ``method`` or ``stem``, if the space has no partial channels, engine cells, shared features or no
        such stem; on ``engine``, for what it cannot be; on ``channels``, ``cells`` or ``partial`` for a size it cannot
        have; from ``apply``, on ``mixture`` for tables that are not those of the space, and on ``dataset`` for images
        of another shape.
    """
    raise TypeError(f"no supernet for a space of type {type(space).__name__}")


def check_without_engine(space: Any, stem: str, engine: str | tuple[int, ...], shared: bool) -> None:
    """Refuses what only supernets of the DARTS space have.

    Args:
      space: the search space.
      stem: as for `supernet`, and so all that follow.
      engine: which cells are engine cells.
      shared: whether operations share features.

    Raises:
      UsageError: on ``method`` or ``stem``.
    """
    if engine != "all" or shared:
        raise UsageError("method", f"needs engine cells, which {space.name} has not; the DARTS space has them")
    if stem != "cifar":
        raise UsageError("stem", f"must be 'cifar' for {space.name}, not {stem!r}")


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
        probes = active is not None and mixture.inactive == "probe"
        # Where few edges pool, a map that all of them share is seldom needed.
        of = Node.of if active is None or probes else Node
        nodes = [of(gradient_once(x))]
        for node in (1, 2, 3):
            if active is None:
                total = _into(self, self.space, node, nodes, weights, self.dtype, train)
                nodes.append(of(gradient_once(total)))
                continue
            total = jnp.zeros_like(x)
            for edge, source in _edges_into(node):
                operations = _operations(self.space, edge, self.dtype, train)
                weighs = jax.lax.stop_gradient(weights[edge]) if probes else weights[edge]
                total += nn.switch(jnp.argmax(active[edge]), operations, self, nodes[source], weighs)
                if mixture.inactive == "scalar":
                    total += jnp.sum(jnp.where(active[edge], 0, weights[edge]))
            if probes:
                results = functools.partial(_results, MixedNode(self.space, node, self.dtype, parent=None), train)
                total = _probe(results, total, weights, (self.variables, nodes))
            nodes.append(of(gradient_once(total)))
        return nodes[3].features


class MixedNode(nn.Module):
    """A node of a `MixedCell` alone, with all operations, to be applied to the variables of the cell.

    Attributes:
      space: the space that names the operations.
      node: its number.
      dtype: compute type.
    """

    space: NASBench201
    node: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, nodes: Sequence[Node], weights: jax.Array, train: bool) -> jax.Array:
        """The nodes before it and weights [6, operations] to [B, H, W, C]."""
        return _into(self, self.space, self.node, nodes, weights, self.dtype, train)


def _results(node: MixedNode, train: bool, weights: jax.Array, operands: tuple[Any, Sequence[Node]]) -> jax.Array:
    variables, nodes = operands
    out, _ = node.apply(variables, nodes, weights, train, mutable=["batch_stats"])
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _probe(
    results: Callable[[jax.Array, Any], jax.Array], total: jax.Array, weights: jax.Array, operands: Any
) -> jax.Array:
    """The features of a node; weights get the gradient that they have in ``results``, which only the way back makes."""
    return total


def _probe_forward(results: Any, total: jax.Array, weights: jax.Array, operands: Any) -> tuple[jax.Array, Any]:
    return total, (weights, operands)


def _probe_backward(results: Any, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    weights, operands = saved
    _, pull_back = jax.vjp(lambda weights: results(weights, operands), weights)
    return g, *pull_back(g), None


_probe.defvjp(_probe_forward, _probe_backward)


def _edges_into(node: int) -> list[tuple[int, int]]:
    """The edges into a node: their numbers, and the nodes that they leave."""
    return [(edge, source) for edge, (target, source) in enumerate(EDGES) if target == node]


def _into(
    module: nn.Module,
    space: NASBench201,
    node: int,
    nodes: Sequence[Node],
    weights: jax.Array,
    dtype: DTypeLike,
    train: bool,
) -> jax.Array:
    """The features of a node, of all operations."""
    total = jnp.zeros_like(nodes[0].features)
    for edge, source in _edges_into(node):
        for operation in _operations(space, edge, dtype, train):
            total += operation(module, nodes[source], weights[edge])
    return total


def _operations(
    space: NASBench201, edge: int, dtype: DTypeLike, train: bool
) -> list[Callable[[nn.Module, Node, jax.Array], jax.Array]]:
    return [_operation(space, edge, option, dtype, train) for option in range(len(space.operations))]


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
    space: NASBench201,
    *,
    partial: int = 1,
    stem: str = "cifar",
    engine: str | tuple[int, ...] = "all",
    shared: bool = False,
    **size: Any,
) -> NASBench201Supernet:
    if partial != 1:
        raise UsageError(
            "method",
            f"needs partial channels, which {space.name} has not; the DARTS space and NAS-Bench-1Shot1 have them",
        )
    check_without_engine(space, stem, engine, shared)
    return NASBench201Supernet(space, **size)
