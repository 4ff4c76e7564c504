"""Cells as labelled graphs that are written node by node, so that one generator and one encoder serve every space.

A cell has its operations on nodes. It is an array of labels, one a node, and an adjacency matrix from sources to
targets; both are padded to the largest cell. A `Grammar` says at each step of the writing what may come next, so that
whatever is sampled under its masks is a cell of the space.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.spaces.nas_bench_201 import EDGES

INPUT, OUTPUT, FIRST_OPERATION = 0, 1, 2
"""The first numbers of labels: input and output of a cell, then its operations. The last is that of no node."""


class CellGraph(NamedTuple):
    """A cell, or what is written of one; arrays may have leading axes for several.

    Attributes:
      labels: int32 [nodes], numbers of `Grammar.labels`, in topological order.
      adjacency: bool [nodes, nodes], True where the row's node is an input of the column's.
    """

    labels: jax.Array
    adjacency: jax.Array

    def prefix(self, node: int | jax.Array, source: int | jax.Array, none: int) -> "CellGraph":
        """What was written of a finished cell before the edge from ``source`` to ``node`` was decided.

        Args:
          node: the node that is being written; its label stays if ``source`` is 0 or more.
          source: the first source whose edge to ``node`` is not decided; -1 if the label is not either.
          none: the label of no node.

        Returns:
          The unfinished cell, of the same shapes.
        """
        places = jnp.arange(self.labels.shape[-1])
        labelled = (places < node) | ((places == node) & (source >= 0))
        decided = (places < node)[None, :] | ((places == node)[None, :] & (places < source)[:, None])
        return CellGraph(jnp.where(labelled, self.labels, none), self.adjacency & decided)


class Grammar(NamedTuple):
    """How the cells of a space are written: node 0 is the input, then come a label and its edges, node by node.

    Attributes:
      labels: names of the labels: ``input``, ``output``, the operations, and ``-`` for no node.
      nodes: most nodes of a cell, input and output included.
      steps: how many nodes are decided, from node 1 on; those after them follow from the rest.
      start: ``start() -> CellGraph``: what is written before the first step.
      label_mask: ``label_mask(graph, node) -> bool [labels]``: the labels that ``node`` may have.
      edge_mask: ``edge_mask(graph, node, source) -> bool [2]``: whether there may be no edge, and whether there may
        be one, given the label of ``node`` and the edges of earlier sources.
      fixed: whether every cell has the same edges, so that `edge_mask` never leaves a choice.
    """

    labels: tuple[str, ...]
    nodes: int
    steps: int
    start: Callable[[], CellGraph]
    label_mask: Callable[[CellGraph, jax.Array], jax.Array]
    edge_mask: Callable[[CellGraph, jax.Array, jax.Array], jax.Array]
    fixed: bool

    @property
    def none(self) -> int:
        """The label of no node."""
        return len(self.labels) - 1


@functools.cache
def operations_on_edges(operations: tuple[str, ...]) -> Grammar:
    """The cells of the NAS-Bench-201 family, whose six edges become nodes.

    A node of the cell is the sum of its edges, so that what reads it has them all as inputs: the last edge, from node 2
    to node 3, reads the nodes of both edges into node 2. The output reads the three edges into node 3.

    Args:
      operations: what an edge may carry, in the order of the rows' digits.

    Returns:
      The grammar, of eight nodes and six steps.

    Example:
      >>> grammar = operations_on_edges(("none", "skip_connect"))
      >>> [grammar.start().adjacency[:, node].nonzero()[0].tolist() for node in (1, 6, 7)]
      [[0], [2, 3], [4, 5, 6]]
    """
    labels = ("input", "output", *operations, "-")
    last = len(EDGES) + 1
    adjacency = np.zeros((last + 1, last + 1), bool)
    for target, (node, _) in enumerate(EDGES, start=1):
        reads = EDGES[target - 1][1]
        adjacency[[0] if reads == 0 else [1 + i for i, (into, _) in enumerate(EDGES) if into == reads], target] = True
        adjacency[target, last] = node == EDGES[-1][0]
    choices = np.zeros(len(labels), bool)
    choices[FIRST_OPERATION:-1] = True

    def start() -> CellGraph:
        written = [INPUT] + [len(labels) - 1] * len(EDGES) + [OUTPUT]
        return CellGraph(jnp.asarray(written, jnp.int32), jnp.asarray(adjacency))

    def label_mask(graph: CellGraph, node: jax.Array) -> jax.Array:
        return jnp.asarray(choices)

    def edge_mask(graph: CellGraph, node: jax.Array, source: jax.Array) -> jax.Array:
        there = jnp.asarray(adjacency)[source, node]
        return jnp.stack([~there, there])

    return Grammar(labels, last + 1, len(EDGES), start, label_mask, edge_mask, fixed=True)
