"""The relaxed network of the DARTS space, with partial channels and edge weights if a method wants them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.darts.operations import Edge, apply_edges, shuffle
from gaea_jax.nets.darts.skeleton import STEM_MULTIPLIER, Place, Preprocess, check_size, skeleton
from gaea_jax.nets.lowering import max_pool
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
        edges = [
            Edge(
                self.operations,
                seen,
                stride=self._stride(source),
                affine=False,
                norm_pools=True,
                dtype=self.dtype,
                name=f"edge_{node}_{source}",
            )
            for node, source in EDGES
        ]
        states = list(Preprocess(self.place, False, self.dtype, name="inputs")(before, last, train))
        mixed: dict[int, jax.Array] = {}
        passed: dict[int, jax.Array] = {}
        for source in range(NODES[-1]):
            if source in NODES:
                states.append(self._node(mixed[source], passed.get(source)))
            x = states[source]
            rest = x[..., seen:]
            if self.partial > 1 and self._stride(source) == 2:
                rest = max_pool(rest, 2, 2)
            leaving = [edge for edge, (_, start) in enumerate(EDGES) if start == source]
            scaled = (weights[jnp.array(leaving)] * edge_weights[jnp.array(leaving), None]).astype(self.dtype)
            if active is None:
                results = self._dense([edges[edge] for edge in leaving], x[..., :seen], scaled, train)
            else:
                results = [
                    self._sampled(edges[edge], x[..., :seen], row, active[edge], mixture.inactive, train)
                    for edge, row in zip(leaving, scaled, strict=True)
                ]
            for edge, result in zip(leaving, results, strict=True):
                node, _ = EDGES[edge]
                mixed[node] = mixed[node] + result if node in mixed else result
                if self.partial > 1:
                    kept = edge_weights[edge] * (1 if active is None else jnp.any(active[edge]))
                    term = rest * kept.astype(self.dtype)
                    passed[node] = passed[node] + term if node in passed else term
        states.append(self._node(mixed[NODES[-1]], passed.get(NODES[-1])))
        return jnp.concatenate([states[node] for node in NODES], axis=-1)

    def _stride(self, source: int) -> int:
        return 2 if self.place.reduction and source not in NODES else 1

    def _node(self, mixed: jax.Array, passed: jax.Array | None) -> jax.Array:
        return mixed if passed is None else shuffle(jnp.concatenate([mixed, passed], axis=-1), self.partial)

    def _dense(self, edges: list[Edge], x: jax.Array, weights: jax.Array, train: bool) -> list[jax.Array]:
        """The weighted sum of all operations for each edge that leaves a node; weights [m, operations]."""
        stacks = [
            apply_edges(edges, operation, x, train, weights[:, option])
            for option, operation in enumerate(self.operations)
            if operation != "none"
        ]
        return [functools.reduce(jnp.add, [stack[place] for stack in stacks]) for place in range(len(edges))]

    def _sampled(
        self, edge: Edge, x: jax.Array, weights: jax.Array, active: jax.Array, inactive: str, train: bool
    ) -> jax.Array:
        """The active operation of an edge, if it has one; weights and active [operations]."""

        def run(option: int) -> Callable[[Edge, jax.Array, jax.Array], jax.Array]:
            operation = self.operations[option]
            if operation == "none":
                return nothing
            return lambda edge, x, weights: edge(operation, x, train, weights[option])

        def nothing(edge: Edge, x: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.zeros_like(x[:, :: edge.stride, :: edge.stride])

        branches = [nothing, *map(run, range(len(self.operations)))]
        chosen = jnp.where(jnp.any(active), 1 + jnp.argmax(active), 0)
        result = nn.switch(chosen, branches, edge, x, weights)
        if inactive == "scalar":
            result += jnp.sum(jnp.where(active, 0, weights))
        return result


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
