"""The edges of a cell whose operations have the same stride, all of them computed at once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax.nets.active import active_parameters
from gaea_jax.nets.darts.operations import Arrays, Kind, apply
from gaea_jax.nets.darts.skeleton import reductions
from gaea_jax.nets.lowering import members_of_sum
from gaea_jax.spaces.darts import CELLS, DARTS, EDGES, NODES

# For each candidate its arrays, by name.
Tables = Mapping[str, Arrays]

STRIDE_2 = "_stride_2"
# The edges, sorted by the node that they leave.
BY_SOURCE = tuple(sorted(range(len(EDGES)), key=lambda edge: EDGES[edge][::-1]))
FROM_INPUTS = 2 * len(NODES)


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
    return (STRIDE_2, place) if source not in NODES else ("", place - FROM_INPUTS)


class Variables(NamedTuple):
    """What the candidates on some edges have learnt, a row an edge.

    Attributes:
      params: for each candidate but ``none`` its parameters.
      running: the same for its running statistics.
    """

    params: Tables
    running: Tables


class Edges(NamedTuple):
    """Edges of the same stride, sorted by the node that they leave.

    Attributes:
      operations: the candidates.
      kinds: of each but ``none`` its kind.
      numbers: which edges.
    """

    operations: tuple[str, ...]
    kinds: tuple[Kind, ...]
    numbers: tuple[int, ...]

    def by_source(self, variables: Variables) -> Iterator[tuple[int, "Edges", Variables]]:
        """For each node that edges leave: the node, these edges, and their part of the variables."""
        cuts = [(source, tuple(edges)) for source, edges in itertools.groupby(self.numbers, lambda n: EDGES[n][1])]
        pieces = jax.tree.map(lambda table: tuple(jax.lax.split(table, [len(edges) for _, edges in cuts])), variables)
        for place, (source, edges) in enumerate(cuts):
            own = jax.tree.map(lambda _, of_table, place=place: of_table[place], variables, pieces)
            yield source, self._replace(numbers=edges), own

    def dense(self, x: jax.Array, weights: jax.Array, own: Variables, train: bool) -> tuple[list[jax.Array], Tables]:
        """Of edges that all leave x the weighted sums of all operations.

        Args:
          x: features [B, H, W, C] of the node.
          weights: [edges, operations], of the compute type.
          own: variables of these edges.
          train: batch statistics if True, running statistics if not.

        Returns:
          The sum of each edge, and the new running statistics.
        """
        stacks, running = [], {}
        for kind in self.kinds:
            name = kind.operation
            column = weights[:, self.operations.index(name)]
            stack, running[name] = apply(kind, own.params[name], own.running[name], x, train, column, len(self.numbers))
            stacks.append(stack)
        return members_of_sum(*stacks), running


@active_parameters.register
def _active_darts(space: DARTS, params: Mapping[str, Any], active: Mapping[str, jax.Array]) -> Any:
    count = sum(name.startswith("cell_") for name in params)

    def mask(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array | bool:
        module, *inner = (key.key for key in path)
        if not module.startswith("cell_") or inner[0] == "inputs":
            return True
        reduction = int(module.removeprefix("cell_")) in reductions(count)
        operation = inner[0].removesuffix(STRIDE_2)
        numbers = BY_SOURCE
        if reduction:
            numbers = BY_SOURCE[FROM_INPUTS:] if operation == inner[0] else BY_SOURCE[:FROM_INPUTS]
        cell = CELLS[reduction]
        rows = active[cell][jnp.array(numbers), space.choices[cell].options.index(operation)]
        return rows.reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(mask, params)


def joined(parts: Sequence[Tables]) -> Tables:
    """Tables of parts, as `Edges.by_source` cuts them, in one."""
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
