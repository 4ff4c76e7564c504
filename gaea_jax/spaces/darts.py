"""The cell space of DARTS for images, with and without its ``none`` operation, and NASP's with other operations.

A network stacks normal and reduction cells of one design each. A cell has two inputs, the outputs of the two cells
before, and four intermediate nodes, each the sum of its incoming edges; its output is their concatenation (`DARTS
<https://arxiv.org/abs/1806.09055>`_, sections 2.1 and 3.1.1). Every one of the 14 edges has a mixture of operations; of
each node the derived cell keeps two edges with one operation each, which is never ``none``. So with and
without it the genotypes are the same.
"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.spaces.base import Choice, Graph, check_tables
from gaea_jax.spaces.darts_genotype import (
    CELLS,
    EDGES,
    GRAMMAR,
    JSON,
    KNOWN,
    NODES,
    OPERATIONS,
    Cell,
    Genotype,
    parse_grammar,
    parse_json,
)
from gaea_jax.spaces.published import find

_TARGETS = tuple(node for node, _ in EDGES)
# Names of the two inputs, the intermediate nodes and the output as the papers draw them.
_DRAWN = ("c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "c_{k}")


@dataclasses.dataclass(frozen=True)
class DARTS:
    """The DARTS space, or one that has its cells with other operations.

    Attributes:
      name: name of the space.
      operations: the operations of a mixture, two or more of `KNOWN` besides ``none``, which comes first; of equal
        weights the first operation is derived.
      reduce_operations: those of the reduction cell, if they are others.

    Raises:
      UsageError: on ``operations`` or ``reduce_operations``, if they are not such a selection.
    """

    name: str
    operations: tuple[str, ...]
    reduce_operations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for argument, cell in (("operations", "normal"), ("reduce_operations", "reduce")):
            wanted = self._selectable(cell)
            if len(wanted) < 2 or len(set(wanted)) < len(wanted) or not set(wanted) <= {*KNOWN[1:]}:
                accepted = f"two or more of {', '.join(KNOWN[1:])}, each once, with or without none before them"
                raise UsageError(argument, f"wants {accepted}")

    def options(self, cell: str) -> tuple[str, ...]:
        """The operations of a mixture in the ``"normal"`` or the ``"reduce"`` cell."""
        return self.reduce_operations or self.operations if cell == "reduce" else self.operations

    def _first(self, cell: str) -> int:
        """The column of the first operation that a derived cell may have."""
        return int(self.options(cell)[:1] == ("none",))

    def _selectable(self, cell: str) -> tuple[str, ...]:
        """The operations that a derived cell may have."""
        return self.options(cell)[self._first(cell) :]

    @property
    def choices(self) -> dict[str, Choice]:
        """An operation for each of the 14 edges of both cells, and, optional, the inputs of the nodes.

        The tables of inputs are flat: `EDGES` in order, a simplex for each node over its incoming edges (`PC-DARTS
        <https://arxiv.org/abs/1907.05737>`_, section 3.3).
        """
        edges = tuple(f"{node}<-{source}" for node, source in EDGES)
        segments = tuple(NODES.index(node) for node, _ in EDGES)
        nodes = tuple(map(str, NODES))
        inputs = {f"{cell}_edges": Choice(edges, nodes, "input", segments, weighs=cell) for cell in CELLS}
        return {**{cell: Choice(self.options(cell), edges, "op") for cell in CELLS}, **inputs}

    def select(self, weights: Mapping[str, jax.typing.ArrayLike]) -> dict[str, jax.Array]:
        """Keeps the two best edges of each node, each with its best operation.

        The best operation of an edge is the one with the largest weight, ``none`` left out. The score of an edge is
        that weight, times the weight of the edge where there is one. Of equal ones, the first operation and the lower
        inputs are kept (`DARTS <https://arxiv.org/abs/1806.09055>`_, section 2.4; `PC-DARTS
        <https://arxiv.org/abs/1907.05737>`_, section 3.3). Usable inside jit.

        Args:
          weights: ``normal`` and ``reduce``, [14, operations], and optionally ``normal_edges`` and ``reduce_edges``,
            [14]; real or bool, not negative where there are weights of edges.

        Returns:
          ``normal`` and ``reduce``, bool [14, operations]: one True in the row of an edge that is kept, none in
          another's.

        Raises:
          UsageError: on ``weights``, for a missing or unknown table or another shape.

        Example:
          >>> uniform = {name: choice.uniform() for name, choice in DARTS_SPACE.choices.items()}
          >>> DARTS_SPACE.decode(DARTS_SPACE.select(uniform)).normal[3]
          (('max_pool_3x3', 0), ('max_pool_3x3', 1))
        """
        check_tables(self.choices, weights, "weights")
        selection = {}
        for cell in CELLS:
            table = jnp.asarray(weights[cell], float)[:, self._first(cell) :]
            score = jnp.max(table, axis=-1)
            if f"{cell}_edges" in weights:
                score = score * jnp.asarray(weights[f"{cell}_edges"], float)
            kept = simplex.largest(score, 2, segments=_TARGETS)
            best = jnp.argmax(table, axis=-1) + self._first(cell)
            operation = jax.nn.one_hot(best, len(self.options(cell)), dtype=bool)
            selection[cell] = operation & kept[:, None]
        return selection

    def decode(self, selection: Mapping[str, jax.typing.ArrayLike]) -> Genotype:
        """The genotype of a concrete selection.

        Args:
          selection: ``normal`` and ``reduce``, bool [14, operations], with none True for the operation ``none``; nodes
            may have any number of inputs, and edges of operations.

        Returns:
          The genotype.

        Raises:
          UsageError: on ``selection``, for anything else.
        """
        choices = self.choices
        check_tables({cell: choices[cell] for cell in CELLS}, selection, "selection")
        cells = []
        for cell in CELLS:
            chosen = np.asarray(selection[cell])
            if chosen.dtype != bool or chosen[:, : self._first(cell)].any():
                accepted = "bool tables, with none True for the operation none"
                raise UsageError("selection", f"wants {accepted}; {cell} is not so")
            pairs: dict[int, list[tuple[str, int]]] = {node: [] for node in NODES}
            for edge, operation in np.argwhere(chosen).tolist():
                node, source = EDGES[edge]
                pairs[node].append((self.options(cell)[operation], source))
            cells.append(tuple(map(tuple, pairs.values())))
        return Genotype(*cells)

    def encode(self, genotype: Genotype) -> dict[str, jax.Array]:
        """The selection of a genotype: the inverse of `decode`.

        Args:
          genotype: a pair of cells with operations of this space.

        Returns:
          ``normal`` and ``reduce``, bool [14, operations].

        Raises:
          UsageError: on ``genotype``, if an operation is not one of this space.
        """
        self.check(genotype)
        tables = {cell: np.zeros((len(EDGES), len(self.options(cell))), bool) for cell in CELLS}
        for cell, node, operation, source in _entries(genotype):
            tables[cell][EDGES.index((node, source)), self.options(cell).index(operation)] = True
        return {cell: jnp.asarray(table) for cell, table in tables.items()}

    def parse(self, text: str) -> Genotype:
        """Reads the published grammar, JSON or the name of a published genotype; white space around it is ignored.

        Args:
          text: ``Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=[...],
            reduce_concat=range(2, 6))`` with eight pairs a cell, two for each node in order;
            ``{"space": "darts", "normal": [[["sep_conv_3x3", 1], ...], ...], "reduce": [...]}`` with four nodes a cell
            and any number of pairs a node; or a name of `gaea_jax.spaces.published`. The name of any of these spaces
            is accepted in JSON.

        Returns:
          The genotype; ``parse(str(g)) == g``.

        Raises:
          UsageError: on ``genotype``, with the place of the first error and what is accepted there.

        Example:
          >>> DARTS_SPACE.parse("DARTS_V2").normal[3]
          (('skip_connect', 0), ('dil_conv_3x3', 2))
        """
        genotype = read(text)
        self.check(genotype)
        return genotype

    def graphs(self, genotype: Genotype) -> dict[str, Graph]:
        """Both cells, for drawing: inputs, intermediate nodes, and the output that concatenates these.

        Args:
          genotype: a pair of cells.

        Returns:
          ``normal`` and ``reduce``, with the nodes named as the papers draw them and unlabelled edges to the output.
        """
        output = len(_DRAWN) - 1
        joins = tuple((node, output, "") for node in NODES)
        edges: dict[str, list[tuple[int, int, str]]] = {cell: [] for cell in CELLS}
        for cell, node, operation, source in _entries(genotype):
            edges[cell].append((source, node, operation))
        return {cell: Graph(_DRAWN, (*found, *joins)) for cell, found in edges.items()}

    def check(self, genotype: Genotype) -> None:
        """Refuses what is not a pair of cells with operations of this space.

        Args:
          genotype: the cells to check; their nodes may have any number of inputs.

        Raises:
          UsageError: on ``genotype``, naming the first edge whose operation is not one of this space.
        """
        if not isinstance(genotype, Genotype):
            raise UsageError("genotype", f"wants cells of {self.name}, got {reprlib.repr(genotype)}")
        for cell, node, operation, source in _entries(genotype):
            if operation not in self.options(cell):
                place = f"{cell}, node {node}, input {source}: operation {operation!r}"
                accepted = ", ".join(self._selectable(cell))
                raise UsageError("genotype", f"{place} is not in {self.name}, which has {accepted}")

    def random(self, rng: np.random.Generator) -> Genotype:
        """Two cells drawn uniformly from those whose nodes have two inputs.

        Args:
          rng: source of randomness; advances.

        Returns:
          The genotype.
        """

        def draw(operations: tuple[str, ...]) -> Cell:
            return tuple(
                tuple((operations[rng.integers(len(operations))], int(i)) for i in rng.choice(node, 2, replace=False))
                for node in NODES
            )

        return Genotype(*(draw(self._selectable(cell)) for cell in CELLS))

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """Changes one pair of one node, in its operation or in its input.

        Drawn uniformly from all such changes; the new input is one that the node does not have yet.

        Args:
          genotype: a pair of cells with operations of this space.
          rng: source of randomness; advances.

        Returns:
          A genotype that differs in exactly one operation or one input.

        Raises:
          UsageError: on ``genotype``, if an operation is not one of this space, or there is no operation at all.
        """
        self.check(genotype)
        changes = []
        for cell, node, operation, source in _entries(genotype):
            pairs = getattr(genotype, cell)[NODES.index(node)]
            free = set(range(node)) - {taken for _, taken in pairs}
            changed = [(other, source) for other in self._selectable(cell)]
            changed += [(operation, other) for other in sorted(free)]
            changes += [(cell, node, (operation, source), pair) for pair in changed if pair not in pairs]
        if not changes:
            raise UsageError("genotype", "has no operation to change; wants one or more")
        cell, node, old, new = changes[rng.integers(len(changes))]
        nodes = list(getattr(genotype, cell))
        index = NODES.index(node)
        nodes[index] = tuple(new if pair == old else pair for pair in nodes[index])
        return dataclasses.replace(genotype, **{cell: tuple(nodes)})

    def count(self) -> int:
        """Number of genotypes whose nodes have two inputs: for both cells, of pairs of inputs and of operations."""
        inputs = math.prod(math.comb(node, 2) for node in NODES)
        return math.prod(inputs * len(self._selectable(cell)) ** (2 * len(NODES)) for cell in CELLS)


DARTS_SPACE = DARTS("darts", OPERATIONS)
"""The space with ``none`` in its mixtures: 8 operations, 1,037,664,180 cells of either kind."""

DARTS_NOZERO = DARTS("darts_nozero", OPERATIONS[1:])
"""The space without ``none``: 7 operations, the same cells."""

NASP_SPACE = DARTS(
    "nasp",
    (
        "skip_connect",
        "conv_3x1_1x3",
        "dil_conv_3x3",
        "conv 1x1",
        "conv 3x3",
        "sep_3x3",
        "sep_5x5",
        "sep_7x7",
    ),
    ("skip_connect", "avg_pool_3x3", "max_pool_3x3", "max_pool_5x5", "max_pool_7x7"),
)
"""The larger space of `NASP <https://arxiv.org/abs/1905.13577>`_, as in its code: 12 operations, of which the normal
cell has 8 and the reduction cell 5. The numbers of cells are 3,019,898,880 and 70,312,500."""


def read(text: str) -> Genotype:
    """Reads a genotype of any space with these cells, as `DARTS.parse` does one of its own.

    Args:
      text: see there.

    Returns:
      The genotype, whose ``space`` names one that has its operations.

    Raises:
      UsageError: on ``genotype``, with the place of the first error and what is accepted there.
    """
    text = text.strip()
    if not text:
        raise UsageError("genotype", f"is empty; wants {GRAMMAR}, {JSON} or the name of a published genotype")
    if text.startswith("{"):
        return parse_json(text)
    return find(text) if re.fullmatch(r"\w+", text) else parse_grammar(text)


def _entries(genotype: Genotype) -> Iterator[tuple[str, int, str, int]]:
    """All (cell, node, operation, input) of a genotype, in order."""
    for cell in CELLS:
        for node, pairs in zip(NODES, getattr(genotype, cell), strict=True):
            for operation, source in pairs:
                yield cell, node, operation, source
