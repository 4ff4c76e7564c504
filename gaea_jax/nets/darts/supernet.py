"""The relaxed network of the DARTS space, with partial channels and edge weights if a method wants them."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.darts.operations import Arrays, Kind, Operation, apply, shuffle
from gaea_jax.nets.darts.skeleton import STEM_MULTIPLIER, Place, Preprocess, check_size, skeleton
from gaea_jax.nets.lowering import gradient_once, max_pool, members_of_sum
from gaea_jax.nets.supernet import Mixture, supernet
from gaea_jax.spaces.base import check_tables
from gaea_jax.spaces.darts import CELLS, DARTS, EDGES, NODES

# For each candidate its arrays, by name.
Tables = Mapping[str, Arrays]

_STRIDE_2 = "_stride_2"
# The edges, sorted by the node that they leave.
BY_SOURCE = tuple(sorted(range(len(EDGES)), key=lambda edge: EDGES[edge][::-1]))


def find_edge(node: int, source: int, reduction: bool) -> tuple[str, int]:
    """Where the parameters of an edge are.

    Args:
      node: where the edge goes to.
      source: where it starts.
      reduction: whether the cell is one.

    Returns:
      What follows the name of an operation in the name of the module that has them, and the row of its arrays.
    """
    edge = EDGES.index((node, source))
    place = BY_SOURCE.index(edge)
    if not reduction:
        return "", place
    return (_STRIDE_2, place) if source not in NODES else ("", place - 2 * len(NODES))


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
    """

    operations: tuple[str, ...]
    place: Place
    partial: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, before: jax.Array, last: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """The outputs of the last two cells to [B, H, W, 4 features], H and W halved in a reduction cell."""
        name = CELLS[self.place.reduction]
        weights = mixture.weights[name]
        edge_weights = mixture.weights.get(f"{name}_edges", jnp.ones(len(EDGES)))
        # All operations have parameters from the start, whichever is active then.
        active = None if mixture.active is None or self.is_initializing() else mixture.active[name]
        seen = self.place.features // self.partial
        groups = (
            [self._group(edges, seen) for edges in (BY_SOURCE[: 2 * len(NODES)], BY_SOURCE[2 * len(NODES) :])]
            if self.place.reduction
            else [self._group(BY_SOURCE, seen)]
        )
        inputs = Preprocess(self.place, False, self.dtype, name="inputs")(before, last, train)
        if active is not None:
            return self._sampled(groups, inputs, weights, edge_weights, active, mixture.inactive, train)
        states = [gradient_once(x) for x in inputs]
        mixed: dict[int, jax.Array] = {}
        passed: dict[int, jax.Array] = {}
        for group in groups:
            running: list[Tables] = []
            for part in group.split(lambda source: source):
                _, source = EDGES[part.edges[0]]
                if source in NODES and source == len(states):
                    states.append(gradient_once(self._node(mixed[source], passed.get(source))))
                x, rest = self._cut(states[source], group.stride)
                rows = jnp.array(part.edges)
                scaled = (weights[rows] * edge_weights[rows, None]).astype(self.dtype)
                results, new = part.dense(x, scaled, train)
                running.append(new)
                for edge, result in zip(part.edges, results, strict=True):
                    node, _ = EDGES[edge]
                    mixed[node] = mixed[node] + result if node in mixed else result
                    if rest is not None:
                        term = rest * edge_weights[edge].astype(self.dtype)
                        passed[node] = passed[node] + term if node in passed else term
            if train:
                group.keep(running)
        states.append(self._node(mixed[NODES[-1]], passed.get(NODES[-1])))
        return jnp.concatenate([states[node] for node in NODES], axis=-1)

    def _sampled(
        self,
        groups: Sequence["Group"],
        inputs: tuple[jax.Array, jax.Array],
        weights: jax.Array,
        edge_weights: jax.Array,
        active: jax.Array,
        inactive: str,
        train: bool,
    ) -> jax.Array:
        """The cell of which only what is active is computed, at most one operation an edge.

        The edges from the inputs and those between nodes are two loops, so that a program has every candidate twice and
        not once for each of the 14 edges. It compiles in a fraction of the time.
        """
        first, *_ = NODES
        batch, *sides, features = inputs[1].shape
        sides = [side // (1 + self.place.reduction) for side in sides]
        seen = features // self.partial
        widths = (seen,) if self.partial == 1 else (seen, features - seen)
        sums = tuple(jnp.zeros((len(NODES), batch, *sides, width), self.dtype) for width in widths)
        table = jnp.stack(inputs)
        for group in groups:
            running: list[Tables] = []
            for part in group.split(lambda source: source in NODES):
                targets, sources = zip(*(EDGES[edge] for edge in part.edges), strict=True)
                between = sources[0] in NODES
                rows = jnp.array(part.edges)
                scaled = (weights[rows] * edge_weights[rows, None]).astype(self.dtype)
                kept = (edge_weights[rows] * jnp.any(active[rows], axis=-1)).astype(self.dtype)
                places = jnp.array(targets) - first, jnp.array(sources) - (first if between else 0)
                edge = functools.partial(self._edge, part, group.stride, None if between else table, inactive, train)
                sums, new = jax.lax.scan(edge, sums, (*places, kept, scaled, active[rows], part.params, part.running))
                running.append(new)
            if train:
                group.keep(running)
        return jnp.concatenate([self._node(*(total[place] for total in sums)) for place in range(len(NODES))], axis=-1)

    def _edge(
        self,
        part: "Part",
        stride: int,
        inputs: jax.Array | None,
        inactive: str,
        train: bool,
        sums: tuple[jax.Array, ...],
        row: Sequence[Any],
    ) -> tuple[tuple[jax.Array, ...], Tables]:
        """A round of that loop: adds to the sums of a node what an edge brings it from an input, or another node."""
        target, source, kept, *operations = row
        table = sums if inputs is None else (inputs,)
        x = self._node(*(jax.lax.dynamic_index_in_dim(one, source, keepdims=False) for one in table))
        x, rest = self._cut(x, stride)
        result, new = part.sampled(x, operations, inactive, train)
        terms = (result,) if rest is None else (result, rest * kept)
        return tuple(_add(total, term, target) for total, term in zip(sums, terms, strict=True)), new

    def _cut(self, x: jax.Array, stride: int) -> tuple[jax.Array, jax.Array | None]:
        """The channels that the operations see, and the others, pooled if the stride is 2; None if there are none."""
        if self.partial == 1:
            return x, None
        seen = self.place.features // self.partial
        rest = x[..., seen:]
        return x[..., :seen], max_pool(rest, 2, 2) if stride == 2 else rest

    def _node(self, mixed: jax.Array, passed: jax.Array | None = None) -> jax.Array:
        return mixed if passed is None else shuffle(jnp.concatenate([mixed, passed], axis=-1), self.partial)

    def _group(self, edges: Sequence[int], features: int) -> "Group":
        """Declares the operations of edges of the same stride."""
        stride = 2 if self.place.reduction and EDGES[edges[0]][1] not in NODES else 1
        suffix = _STRIDE_2 if stride == 2 else ""
        operations = {
            name: Operation(
                Kind(name, features, stride, affine=False, norm_pools=True, dtype=self.dtype),
                len(edges),
                name=name + suffix,
            )
            for name in self.operations
            if name != "none"
        }
        return Group(self.operations, tuple(edges), stride, operations)


def _add(sums: jax.Array, term: jax.Array, place: jax.Array) -> jax.Array:
    """Adds to one of stacked sums."""
    total = jax.lax.dynamic_index_in_dim(sums, place, keepdims=False) + term
    return jax.lax.dynamic_update_index_in_dim(sums, total, place, 0)


class Part(NamedTuple):
    """Edges of the same stride, with the parameters and statistics of their operations.

    Attributes:
      operations: the candidates.
      edges: numbers of the edges.
      kinds: for each candidate but ``none`` its kind.
      params: the same for its parameters, [edges, ...] each.
      running: the same for its running statistics.
    """

    operations: tuple[str, ...]
    edges: tuple[int, ...]
    kinds: Mapping[str, Kind]
    params: Tables
    running: Tables

    def dense(self, x: jax.Array, weights: jax.Array, train: bool) -> tuple[list[jax.Array], Tables]:
        """Of edges that all leave x the weighted sums of all operations, by weights [edges, operations].

        Returns:
          The sum of each edge, and the new running statistics.
        """
        stacks, running = [], {}
        for option, name in enumerate(self.operations):
            if name != "none":
                stack, running[name] = apply(
                    self.kinds[name],
                    self.params[name],
                    self.running[name],
                    x,
                    train,
                    weights[:, option],
                    len(self.edges),
                )
                stacks.append(stack)
        return members_of_sum(*stacks), running

    def sampled(self, x: jax.Array, edge: Sequence[Any], inactive: str, train: bool) -> tuple[jax.Array, Tables]:
        """Of a single edge, which leaves x, the active operation, if it has one.

        Args:
          x: features.
          edge: weights and active [operations], parameters and running statistics of the edge.
          inactive: as in `Mixture`.
          train: as in `apply`.

        Returns:
          The weighted result, and the new running statistics.
        """
        weights, active, params, running = edge

        def nothing(x: jax.Array, weights: jax.Array) -> Any:
            stride = next(iter(self.kinds.values())).stride
            return jnp.zeros_like(x[:, ::stride, ::stride]), running

        def run(option: int) -> Callable[[jax.Array, jax.Array], Any]:
            name = self.operations[option]
            if name == "none":
                return nothing

            def branch(x: jax.Array, weights: jax.Array) -> Any:
                own, old = ({key: array[None] for key, array in tables[name].items()} for tables in (params, running))
                out, new = apply(self.kinds[name], own, old, x, train, weights[option][None], 1)
                return out[0], {**running, name: {key: array[0] for key, array in new.items()}}

            return branch

        branches = [nothing, *map(run, range(len(self.operations)))]
        chosen = jnp.where(jnp.any(active), 1 + jnp.argmax(active), 0)
        result, new = jax.lax.switch(chosen, branches, x, weights)
        if inactive == "scalar":
            result += jnp.sum(jnp.where(active, 0, weights))
        return result, new


class Group(NamedTuple):
    """Edges of the same stride, sorted by the node that they leave.

    Attributes:
      names: the candidates.
      edges: their numbers.
      stride: 1 or 2.
      operations: the declared parameters of each candidate but ``none``.
    """

    names: tuple[str, ...]
    edges: tuple[int, ...]
    stride: int
    operations: dict[str, Operation]

    def split(self, by: Callable[[int], Any]) -> list[Part]:
        """A part for each run of edges for whose sources ``by`` is the same."""
        cuts = [tuple(edges) for _, edges in itertools.groupby(self.edges, key=lambda edge: by(EDGES[edge][1]))]
        sizes = tuple(map(len, cuts))
        kinds = {name: operation.kind for name, operation in self.operations.items()}
        params, running = (
            {
                name: {key: jax.lax.split(array, sizes) for key, array in arrays.items()}
                for name, arrays in tables.items()
            }
            for tables in (
                {name: operation.params for name, operation in self.operations.items()},
                {
                    name: {key: variable.value for key, variable in operation.running.items()}
                    for name, operation in self.operations.items()
                },
            )
        )
        parts = []
        for number, edges in enumerate(cuts):
            own = [
                {name: {key: cut[number] for key, cut in arrays.items()} for name, arrays in tables.items()}
                for tables in (params, running)
            ]
            parts.append(Part(self.names, edges, kinds, *own))
        return parts

    def keep(self, running: Sequence[Tables]) -> None:
        """Sets the running statistics to those of the parts, joined again."""
        for name, operation in self.operations.items():
            operation.keep(jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *(part[name] for part in running)))


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
    """

    space: DARTS
    channels: int
    cells: int
    num_classes: int
    dtype: DTypeLike = jnp.float32
    partial: int = 1
    stem: str = "cifar"

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """Images [B, H, W, channels of the image] to logits [B, num_classes]."""
        choices = self.space.choices
        check_tables(choices, mixture.weights, "mixture")
        if mixture.active is not None:
            check_tables({name: choices[name] for name in CELLS}, mixture.active, "mixture")

        def cell(before: jax.Array, last: jax.Array, place: Place) -> jax.Array:
            mixed = MixedCell(self.space.operations, place, self.partial, self.dtype, name=f"cell_{place.number}")
            return mixed(before, last, mixture, train)

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


@supernet.register
def _supernet_darts(space: DARTS, *, channels: int, cells: int, partial: int = 1, **rest: Any) -> DARTSSupernet:
    check_size(channels, cells)
    if partial < 1 or channels % partial or (channels // partial) % 2:
        raise UsageError(
            "partial", f"must leave an even part of the {channels} channels, so divide {channels // 2}, not {partial}"
        )
    return DARTSSupernet(space, channels, cells, partial=partial, **rest)
