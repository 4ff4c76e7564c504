"""The relaxed network of the DARTS space, with partial channels and edge weights if a method wants them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.active import active_parameters
from gaea_jax.nets.burden import CHANNELS, burdens, shares, size
from gaea_jax.nets.darts.edges import Edges, Rows, Tables, Variables, joined, layout, module_name
from gaea_jax.nets.darts.operations import Kind, Operation
from gaea_jax.nets.darts.skeleton import (
    STEM_MULTIPLIER,
    Engine,
    Place,
    Preprocess,
    check_size,
    engine_layers,
    reductions,
    skeleton,
)
from gaea_jax.nets.darts.subgraph import Operands, Plan, subgraph
from gaea_jax.nets.lowering import gradient_once, max_pool
from gaea_jax.nets.ops import shuffle
from gaea_jax.nets.supernet import Mixture, supernet
from gaea_jax.spaces.base import check_tables
from gaea_jax.spaces.darts import CELLS, DARTS, EDGES, NODES


class MixedCell(nn.Module):
    """A cell in which every edge carries the weighted sum of its candidate operations.

    BatchNorm is not affine here, as in the papers' code: the mixture weights alone scale an operation.

    With partial channels, the operations of an edge see the first 1 / K of the channels and the others pass by (pooled
    to half the size where the stride is 2); the channels are interleaved after that, so that the next edge sees others
    (`PC-DARTS <https://arxiv.org/abs/1907.05737>`_, section 3.2). Joining and interleaving are linear and the same on
    every edge, so they are done once a node.

    Attributes:
      operations: the candidates.
      place: where the cell stands.
      partial: K; 1 lets the operations see all channels.
      dtype: compute type.
      shared: whether the edges that leave a node share what their operations compute (feature sharing).
    """

    operations: tuple[str, ...]
    place: Place
    partial: int
    dtype: DTypeLike
    shared: bool = False

    @nn.compact
    def __call__(self, before: jax.Array, last: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """The outputs of the last two cells to [B, H, W, 4 features], H and W halved in a reduction cell."""
        name = CELLS[self.place.reduction]
        edge_weights = mixture.weights.get(f"{name}_edges", jnp.ones(len(EDGES))).astype(self.dtype)
        weights = (mixture.weights[name] * edge_weights[:, None]).astype(self.dtype)
        groups = [self._declare(stride, rows) for stride, rows in layout(self.place.reduction, self.shared).items()]
        inputs = Preprocess(self.place, False, self.dtype, name="inputs")(before, last, train)
        # All operations have parameters from the start, whichever is active then.
        if mixture.active is None or self.is_initializing():
            nodes, running = self._dense(groups, inputs, weights, edge_weights, train)
        else:
            plan = Plan(tuple(group.edges for group in groups), self.partial, self.shared, mixture.inactive, train)
            own = tuple(group.variables for group in groups)
            operands = Operands(jnp.stack(inputs), weights, edge_weights, own, mixture.active[name])
            table, running = subgraph(plan, operands)
            nodes = [*table]
        if train:
            for group, new in zip(groups, running, strict=True):
                group.keep(new)
        return jnp.concatenate(nodes, axis=-1)

    def _dense(
        self,
        groups: Sequence["Group"],
        inputs: Sequence[jax.Array],
        weights: jax.Array,
        edge_weights: jax.Array,
        train: bool,
    ) -> tuple[list[jax.Array], Sequence[Tables]]:
        """The intermediate nodes, of all operations, and the new running statistics of each group."""
        states = [gradient_once(x) for x in inputs]
        mixed: dict[int, jax.Array] = {}
        passed: dict[int, jax.Array] = {}
        running = []
        for group in groups:
            parts: list[Tables] = []
            for source, edges, own in group.edges.by_source(group.variables):
                if source in NODES and source == len(states):
                    states.append(gradient_once(self._node(mixed[source], passed.get(source))))
                x, rest = self._cut(states[source], edges.kinds[0].stride)
                results, new = edges.dense(x, weights[jnp.array(edges.numbers)], own, train)
                parts.append(new)
                for edge, result in zip(edges.numbers, results, strict=True):
                    node, _ = EDGES[edge]
                    mixed[node] = mixed[node] + result if node in mixed else result
                    if rest is not None:
                        term = rest * edge_weights[edge]
                        passed[node] = passed[node] + term if node in passed else term
            running.append(joined(parts))
        states.append(self._node(mixed[NODES[-1]], passed.get(NODES[-1])))
        return [states[node] for node in NODES], running

    def _cut(self, x: jax.Array, stride: int) -> tuple[jax.Array, jax.Array | None]:
        """The channels that the operations see, and the others, pooled if the stride is 2; None if there are none."""
        if self.partial == 1:
            return x, None
        seen = self.place.features // self.partial
        rest = x[..., seen:]
        return x[..., :seen], max_pool(rest, 2, 2) if stride == 2 else rest

    def _node(self, mixed: jax.Array, passed: jax.Array | None) -> jax.Array:
        return mixed if passed is None else shuffle(jnp.concatenate([mixed, passed], axis=-1), self.partial)

    def _declare(self, stride: int, rows: Rows) -> "Group":
        """Declares the operations of edges of the same stride."""
        features = self.place.features // self.partial
        kinds = tuple(
            Kind(name, features, stride, affine=False, norm_pools=True, dtype=self.dtype)
            for name in self.operations
            if name != "none"
        )
        operations = {
            kind.operation: Operation(kind, len(rows), name=module_name(kind.operation, stride)) for kind in kinds
        }
        return Group(Edges(self.operations, kinds, rows), operations)


class Group(NamedTuple):
    """Edges of the same stride, and the modules that hold what they have learnt.

    Attributes:
      edges: the edges.
      operations: each candidate but ``none``.
    """

    edges: Edges
    operations: dict[str, Operation]

    @property
    def variables(self) -> Variables:
        """What they have learnt."""
        params = {name: operation.params for name, operation in self.operations.items()}
        running = {
            name: {key: variable.value for key, variable in operation.running.items()}
            for name, operation in self.operations.items()
        }
        return Variables(params, running)

    def keep(self, running: Tables) -> None:
        """Sets the running statistics."""
        for name, operation in self.operations.items():
            operation.keep(running[name])


class DARTSSupernet(nn.Module):
    """The relaxed network of the DARTS space; see `supernet`.

    Attributes:
      space: with or without the operation ``none``.
      channels: C.
      cells: L.
      num_classes: number of logits.
      dtype: compute type.
      partial: K of the partial channels.
      stem: ``"cifar"`` or ``"imagenet"``.
      engine: see `supernet`.
      shared: whether the edges that leave a node share what their operations compute.
    """

    space: DARTS
    channels: int
    cells: int
    num_classes: int
    dtype: DTypeLike = jnp.float32
    partial: int = 1
    stem: str = "cifar"
    engine: Engine = "all"
    shared: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """Images [B, H, W, channels of the image] to logits [B, num_classes]."""
        choices = self.space.choices
        for read in (mixture.at(True), mixture.at(False)):
            check_tables(choices, read.weights, "mixture")
            if read.active is not None:
                check_tables({name: choices[name] for name in CELLS}, read.active, "mixture")
        engines = engine_layers(self.engine, self.cells)

        def cell(before: jax.Array, last: jax.Array, place: Place) -> jax.Array:
            options, name = self.space.options(CELLS[place.reduction]), f"cell_{place.number}"
            mixed = MixedCell(options, place, self.partial, self.dtype, self.shared, name=name)
            return mixed(before, last, mixture.at(place.number in engines), train)

        return skeleton(
            x,
            cell,
            stem=self.stem,
            stem_features=STEM_MULTIPLIER * self.channels,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            dtype=self.dtype,
            train=train,
        )


def evaluations(net: DARTSSupernet, mixture: Mixture) -> int:
    """How many operations a supernet computes in a forward pass.

    Args:
      net: the supernet.
      mixture: at which it is evaluated; concrete.

    Returns:
      Their number over all cells. Of a mixture of all operations ``none`` counts too.

    References:
      What the operation counts of `EnTranNAS <https://arxiv.org/abs/2101.11342>`_ follow from: dense cells against
      those that run what is derived, with and without shared features.
    """
    engines, reduces, total = engine_layers(net.engine, net.cells), reductions(net.cells), 0
    for number in range(net.cells):
        reduction, active = number in reduces, mixture.at(number in engines).active
        name = CELLS[reduction]
        for rows in layout(reduction, net.shared).values():
            if active is None:
                total += len(rows) * len(net.space.options(name))
            else:
                table = np.asarray(active[name])
                total += sum(int(table[[*row]].any(axis=0).sum()) for row in rows)
    return total


@burdens.register
def _burdens_darts(space: DARTS) -> dict[str, np.ndarray]:
    def parameters(name: str) -> int:
        operation = Operation(Kind(name, CHANNELS, 1, affine=False, norm_pools=True, dtype=jnp.float32), 1)
        x = jnp.zeros((1, 4, 4, CHANNELS))
        shapes = jax.eval_shape(lambda: operation.init(jax.random.key(0), x, False))
        return size(shapes.get("params", {}))

    names = space.choices["normal"].options
    return {"normal": shares([0 if name == "none" else parameters(name) for name in names])}


@supernet.register
def _supernet_darts(
    space: DARTS,
    *,
    channels: int,
    cells: int,
    partial: int = 1,
    engine: Engine = "all",
    shared: bool = False,
    **rest: Any,
) -> DARTSSupernet:
    check_size(channels, cells)
    engine_layers(engine, cells)
    if partial < 1 or channels % partial or (channels // partial) % 2:
        raise UsageError(
            "partial", f"must leave an even part of the {channels} channels, so divide {channels // 2}, not {partial}"
        )
    if shared and partial != 1:
        raise UsageError("partial", f"must be 1 where edges share their features, not {partial}")
    return DARTSSupernet(space, channels, cells, partial=partial, engine=engine, shared=shared, **rest)


@active_parameters.register
def _active_darts(net: DARTSSupernet, params: Mapping[str, Any], mixture: Mixture) -> Any:
    engines, reduces = engine_layers(net.engine, net.cells), reductions(net.cells)
    places = [
        {
            module_name(operation, stride): (rows, option)
            for stride, rows in layout(reduction, net.shared).items()
            for option, operation in enumerate(net.space.options(CELLS[reduction]))
        }
        for reduction in (False, True)
    ]

    def mask(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array | bool:
        module, *inner = (key.key for key in path)
        if not module.startswith("cell_") or inner[0] == "inputs":
            return True
        number = int(module.removeprefix("cell_"))
        active = mixture.at(number in engines).active
        if active is None:
            return True
        rows, option = places[number in reduces][inner[0]]
        used = [active[CELLS[number in reduces]][jnp.array(row), option].any() for row in rows]
        return jnp.stack(used).reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(mask, params)
