"""The edges of a cell whose operations have the same stride, all of them computed at once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax.nets.darts.operations import Arrays, Kind, apply
from gaea_jax.nets.lowering import members_of_sum
from gaea_jax.spaces.darts import EDGES, NODES

# For each candidate its arrays, by name.
Tables = Mapping[str, Arrays]

# The edges, sorted by the node that they leave.
_BY_SOURCE = tuple(sorted(range(len(EDGES)), key=lambda edge: EDGES[edge][::-1]))
_FROM_INPUTS = 2 * len(NODES)


Rows = tuple[tuple[int, ...], ...]


def layout(reduction: bool, shared: bool) -> dict[int, Rows]:
    """Which edges have the same parameters.

    Args:
      reduction: whether the cell is one.
      shared: whether all edges that leave a node share what their operations compute, or each has its own.

    Returns:
      Stride to the rows of the arrays of its edges, sorted by the node that they leave; a row is the edges that it is
      for.
    """
    edges = {2: _BY_SOURCE[:_FROM_INPUTS], 1: _BY_SOURCE[_FROM_INPUTS:]} if reduction else {1: _BY_SOURCE}

    def of(edge: int) -> int:
        return EDGES[edge][1] if shared else edge

    return {stride: tuple(tuple(row) for _, row in itertools.groupby(found, of)) for stride, found in edges.items()}


def is_shared(reduction: bool, rows: int) -> bool:
    """Whether arrays of so many rows are of edges that share them, see `layout`."""
    return rows in map(len, layout(reduction, True).values())


def module_name(operation: str, stride: int) -> str:
    """The name of the module that has the arrays of an operation on all edges of that stride."""
    return operation if stride == 1 else f"{operation}_stride_{stride}"


def find_edge(operation: str, node: int, source: int, reduction: bool, shared: bool = False) -> tuple[str, int]:
    """Where the parameters of an operation on an edge are.

    Args:
      operation: which.
      node: where the edge goes to.
      source: where it starts.
      reduction: whether the cell is one.
      shared: see `layout`.

    Returns:
      The name of the module in the cell, and the row of its arrays.
    """
    number = EDGES.index((node, source))
    ((stride, place),) = (
        (stride, place)
        for stride, rows in layout(reduction, shared).items()
        for place, row in enumerate(rows)
        if number in row
    )
    return module_name(operation, stride), place


class Variables(NamedTuple):
    """What the candidates on some edges have learnt, in the rows of `layout`.

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
      rows: which edges, as in `layout`.
    """

    operations: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: Rows

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which edges, in order."""
        return tuple(itertools.chain(*self.rows))

    @property
    def shared(self) -> bool:
        """Whether edges share what their operations compute."""
        return len(self.rows) < len(self.numbers)

    def by_source(self, variables: Variables) -> Iterator[tuple[int, "Edges", Variables]]:
        """For each node that edges leave: the node, these edges, and their part of the variables."""
        cuts = [(source, tuple(rows)) for source, rows in itertools.groupby(self.rows, lambda row: EDGES[row[0]][1])]
        pieces = jax.tree.map(lambda table: tuple(jax.lax.split(table, [len(rows) for _, rows in cuts])), variables)
        for place, (source, rows) in enumerate(cuts):
            own = jax.tree.map(lambda _, of_table, place=place: of_table[place], variables, pieces)
            yield source, self._replace(rows=rows), own

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
        columns = [weights[:, self.operations.index(kind.operation)] for kind in self.kinds]
        for kind, column in zip(self.kinds, columns, strict=True):
            name = kind.operation
            weighs = None if self.shared else column
            stack, running[name] = apply(kind, own.params[name], own.running[name], x, train, weighs, len(self.rows))
            stacks.append(stack)
        if not self.shared:
            return members_of_sum(*stacks), running
        features = jnp.concatenate(stacks)
        return [*jnp.tensordot(jnp.stack(columns, axis=1), features, 1)], running


def joined(parts: Sequence[Tables]) -> Tables:
    """Tables of parts, as `Edges.by_source` cuts them, in one."""
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
