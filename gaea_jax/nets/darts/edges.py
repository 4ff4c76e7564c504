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

# The edges, sorted by the node that they leave.
_BY_SOURCE = tuple(sorted(range(len(EDGES)), key=lambda edge: EDGES[edge][::-1]))
_FROM_INPUTS = 2 * len(NODES)


def layout(reduction: bool) -> dict[int, tuple[int, ...]]:
    """Stride to its edges, in the order of the rows of their arrays: sorted by the node that they leave."""
    return {2: _BY_SOURCE[:_FROM_INPUTS], 1: _BY_SOURCE[_FROM_INPUTS:]} if reduction else {1: _BY_SOURCE}


def module_name(operation: str, stride: int) -> str:
    """The name of the module that has the arrays of an operation on all edges of that stride."""
    return operation if stride == 1 else f"{operation}_stride_{stride}"


def find_edge(operation: str, node: int, source: int, reduction: bool) -> tuple[str, int]:
    """Where the parameters of an operation on an edge are.

    Args:
      operation: which.
      node: where the edge goes to.
      source: where it starts.
      reduction: whether the cell is one.

    Returns:
      The name of the module in the cell, and the row of its arrays.
    """
    number = EDGES.index((node, source))
    ((stride, edges),) = ((stride, edges) for stride, edges in layout(reduction).items() if number in edges)
    return module_name(operation, stride), edges.index(number)


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
    places = [
        {
            module_name(operation, stride): (edges, option)
            for stride, edges in layout(reduction).items()
            for option, operation in enumerate(space.choices[CELLS[reduction]].options)
        }
        for reduction in (False, True)
    ]

    def mask(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array | bool:
        module, *inner = (key.key for key in path)
        if not module.startswith("cell_") or inner[0] == "inputs":
            return True
        reduction = int(module.removeprefix("cell_")) in reductions(count)
        edges, option = places[reduction][inner[0]]
        return active[CELLS[reduction]][jnp.array(edges), option].reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(mask, params)


def joined(parts: Sequence[Tables]) -> Tables:
    """Tables of parts, as `Edges.by_source` cuts them, in one."""
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
