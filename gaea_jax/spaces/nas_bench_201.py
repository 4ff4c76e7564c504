"""The cell space of NAS-Bench-201, with and without its ``none`` operation.

A cell is a complete directed acyclic graph on 4 nodes: node 0 is the input, node 3 the output, a node is the
sum of its incoming edges and each of the 6 edges carries one operation (`NAS-Bench-201
<https://arxiv.org/abs/2001.00326>`_, section 2.1). GAEA DARTS searches it without ``none`` (`GAEA
<https://arxiv.org/abs/2004.07802>`_, appendix C.3), so the four other operations make a space of their own,
whose genotypes are valid in the full one.
"""

import dataclasses
import itertools
import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.errors import UsageError
from gaea_jax.spaces.base import Choice, Graph, check_tables

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations, in the order in which the benchmark's tables and base-5 row numbers count them."""

EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
"""The edges as (node, source), in the order of the rows of every weight table."""

_GRAMMAR = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
_JSON = '{"space": "nas_bench_201", "cell": [six operations]}'
_FAMILY = ("nas_bench_201", "nas_bench_201_nozero")


@dataclasses.dataclass(frozen=True)
class Genotype:
    """One cell: the operation of each edge. ``str`` gives the benchmark's published grammar.

    Which operations are allowed depends on the space: `NASBench201.check` and the tables refuse others.

    Attributes:
      cell: six operation names, in the order of `EDGES`.

    Raises:
      UsageError: if ``cell`` is not a tuple of six names.

    Example:
      >>> print(Genotype(("nor_conv_3x3",) * 3 + ("skip_connect", "nor_conv_3x3", "nor_conv_1x1")))
      |nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|
    """

    cell: tuple[str, ...]

    def __post_init__(self) -> None:
        strings = isinstance(self.cell, tuple) and all(isinstance(operation, str) for operation in self.cell)
        if not strings or len(self.cell) != len(EDGES):
            accepted = "six operation names in a tuple (a list in JSON)"
            raise UsageError("genotype", f"wants {accepted}, got {reprlib.repr(self.cell)}")

    def __str__(self) -> str:
        groups = ["|", "|", "|"]
        for (node, source), operation in zip(EDGES, self.cell, strict=True):
            groups[node - 1] += f"{operation}~{source}|"
        return "+".join(groups)


@dataclasses.dataclass(frozen=True)
class NASBench201:
    """NAS-Bench-201, or the part of it that uses only some of the operations.

    Attributes:
      name: name of the space.
      operations: the operations to choose from, two or more of `OPERATIONS`, in that order.

    Raises:
      UsageError: if ``operations`` is not such a selection.
    """

    name: str
    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        ordered = tuple(operation for operation in OPERATIONS if operation in self.operations)
        if self.operations != ordered or len(ordered) < 2:
            raise UsageError("operations", f"wants two or more of {', '.join(OPERATIONS)}, in this order")

    @property
    def choices(self) -> dict[str, Choice]:
        """One table ``"cell"``: an operation for each of the six edges."""
        rows = tuple(f"{node}<-{source}" for node, source in EDGES)
        return {"cell": Choice(self.operations, rows, "op")}

    def select(self, weights: Mapping[str, jax.typing.ArrayLike]) -> dict[str, jax.Array]:
        """The largest weight of each edge, ``none`` included; of equal weights, the first operation.

        This is the derivation rule of the benchmark's and of GAEA's search networks. Usable inside jit.

        Args:
          weights: ``{"cell": [6, operations]}``, real or bool. A NaN counts as the largest.

        Returns:
          ``{"cell": bool [6, operations]}`` with one True a row.

        Raises:
          UsageError: on ``weights``, for a missing or unknown table or another shape.

        Example:
          >>> selection = NAS_BENCH_201.select({"cell": jnp.eye(6, 5)})
          >>> print(NAS_BENCH_201.decode(selection))
          |none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|
        """
        check_tables(self.choices, weights, "weights")
        best = jnp.argmax(jnp.asarray(weights["cell"]), axis=-1)
        return {"cell": jax.nn.one_hot(best, len(self.operations), dtype=bool)}

    def decode(self, selection: Mapping[str, jax.typing.ArrayLike]) -> Genotype:
        """The genotype of a concrete selection.

        Args:
          selection: ``{"cell": bool [6, operations]}`` with exactly one True a row.

        Returns:
          The genotype.

        Raises:
          UsageError: on ``selection``, for anything else.
        """
        check_tables(self.choices, selection, "selection")
        chosen = np.asarray(selection["cell"])
        if chosen.dtype != bool or (chosen.sum(axis=-1) != 1).any():
            raise UsageError("selection", "wants a bool table with exactly one True in each row")
        return Genotype(tuple(self.operations[i] for i in chosen.argmax(axis=-1)))

    def encode(self, genotype: Genotype) -> dict[str, jax.Array]:
        """The selection of a genotype: the inverse of `decode`.

        Args:
          genotype: a cell with operations of this space.

        Returns:
          ``{"cell": bool [6, operations]}`` with one True a row.

        Raises:
          UsageError: on ``genotype``, if an operation is not one of this space.
        """
        self.check(genotype)
        chosen = [[operation == option for option in self.operations] for operation in genotype.cell]
        return {"cell": jnp.asarray(chosen)}

    def index(self, selection: Mapping[str, jax.typing.ArrayLike]) -> jax.Array:
        """The row of a selection in a table of all 15,625 cells. Usable inside jit.

        Rows number the operations of the full space as base-5 digits, first edge most significant, whichever
        operations this space has. So the true accuracy of every derived cell can be read on the device:
        ``table.scores(...)[space.index(space.select(weights))]``.

        Args:
          selection: ``{"cell": bool [6, operations]}`` with one True a row.

        Returns:
          int32 scalar in 0..15,624.

        Raises:
          UsageError: on ``selection``, for a missing or unknown table or another shape.

        Example:
          >>> int(NAS_BENCH_201_NOZERO.index(NAS_BENCH_201_NOZERO.encode(Genotype(("skip_connect",) * 6))))
          3906
        """
        check_tables(self.choices, selection, "selection")
        digits = jnp.asarray([OPERATIONS.index(operation) for operation in self.operations], jnp.int32)
        powers = jnp.asarray([len(OPERATIONS) ** power for power in reversed(range(len(EDGES)))], jnp.int32)
        return jnp.sum(digits[jnp.argmax(jnp.asarray(selection["cell"]), axis=-1)] * powers, dtype=jnp.int32)

    def parse(self, text: str) -> Genotype:
        """Reads the published grammar or JSON; white space around the text is ignored.

        Args:
          text: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, where each node lists all its inputs in order, or
            ``{"space": "nas_bench_201", "cell": [...]}`` with six operations in the order of `EDGES`. The
            name of either NAS-Bench-201 space is accepted in JSON; which operations are accepted depends on
            this space only.

        Returns:
          The genotype; ``parse(str(g)) == g``.

        Raises:
          UsageError: on ``genotype``, with the place of the first error and what is accepted there.

        Example:
          >>> NAS_BENCH_201.parse("|none~0|+|none~0|skip_connect~1|+|none~0|none~1|none~2|").cell[2]
          'skip_connect'
        """
        text = text.strip()
        if not text:
            raise UsageError("genotype", f"is empty; wants {_GRAMMAR} or {_JSON}")
        genotype = _parse_json(text) if text.startswith("{") else _parse_grammar(text)
        self.check(genotype)
        return genotype

    def graphs(self, genotype: Genotype) -> dict[str, Graph]:
        """The cell, for drawing.

        Args:
          genotype: a cell.

        Returns:
          ``{"cell": graph}`` with the six edges in the order of `EDGES`, ``none`` included.
        """
        edges = tuple((source, node, operation) for (node, source), operation in zip(EDGES, genotype.cell, strict=True))
        return {"cell": Graph(("0\ninput", "1", "2", "3\noutput"), edges)}

    def check(self, genotype: Genotype) -> None:
        """Refuses what is not a cell of this space.

        Args:
          genotype: the cell to check.

        Raises:
          UsageError: on ``genotype``, naming the first edge whose operation is not one of this space.
        """
        if not isinstance(genotype, Genotype):
            raise UsageError("genotype", f"wants a cell of {self.name}, got {reprlib.repr(genotype)}")
        for (node, source), operation in zip(EDGES, genotype.cell, strict=True):
            if operation not in self.operations:
                place = f"node {node}, input {source}: operation {reprlib.repr(operation)}"
                accepted = ", ".join(self.operations)
                raise UsageError("genotype", f"{place} is not in {self.name}, which has {accepted}")

    def random(self, rng: np.random.Generator) -> Genotype:
        """A cell drawn uniformly from the space.

        Args:
          rng: source of randomness; advances.

        Returns:
          The genotype.
        """
        return Genotype(tuple(self.operations[i] for i in rng.integers(len(self.operations), size=len(EDGES))))

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """Gives one edge, drawn uniformly, another operation, drawn uniformly from the others.

        Args:
          genotype: a cell with operations of this space.
          rng: source of randomness; advances.

        Returns:
          A genotype that differs in exactly one edge.

        Raises:
          UsageError: on ``genotype``, if an operation is not one of this space.
        """
        self.check(genotype)
        edge = int(rng.integers(len(EDGES)))
        others = [operation for operation in self.operations if operation != genotype.cell[edge]]
        return Genotype((*genotype.cell[:edge], others[rng.integers(len(others))], *genotype.cell[edge + 1 :]))

    def count(self) -> int:
        """Number of cells: operations to the sixth power."""
        return len(self.operations) ** len(EDGES)

    def genotypes(self) -> Iterator[Genotype]:
        """All cells, in the order of their rows in a table (see `index`)."""
        return (Genotype(cell) for cell in itertools.product(self.operations, repeat=len(EDGES)))


NAS_BENCH_201 = NASBench201("nas_bench_201", OPERATIONS)
"""The full space: 5 operations, 15,625 cells."""

NAS_BENCH_201_NOZERO = NASBench201("nas_bench_201_nozero", OPERATIONS[1:])
"""The space that GAEA DARTS searches: 4 operations, 4,096 cells."""

TRANSNAS_MICRO = NASBench201("transnas_micro", OPERATIONS[:4])
"""The micro space of TransNAS-Bench-101: the same cell with the first 4 operations, 4,096 cells."""


def canonical(genotype: Genotype) -> str:
    """The benchmark's name for the function that a cell computes: cells of one name were counted as one.

    ``skip_connect`` passes its source on and ``none`` gives the zero ``#``; terms of a sum are sorted as
    text. Zero terms stay in a sum and a passed-on sum is not sorted again, so equal names mean equal
    functions, but not the reverse: this is the published count (6,466 names for 15,625 cells, 3,131 for the
    4,096 without ``none``; `NAS-Bench-201 <https://arxiv.org/abs/2001.00326>`_), and it depends on exactly
    this spelling.

    Args:
      genotype: a cell. Operations other than ``none`` and ``skip_connect`` are taken as they are named.

    Returns:
      An expression in the input ``0``. The output sees the input exactly if ``0`` occurs as a term.

    Example:
      >>> canonical(Genotype(("nor_conv_3x3", "none", "skip_connect", "none", "none", "skip_connect")))
      '#+#+#+(0)@nor_conv_3x3'
    """
    nodes = ["0"]
    for node in (1, 2, 3):
        terms = []
        for (target, source), operation in zip(EDGES, genotype.cell, strict=True):
            if target != node:
                continue
            if operation == "none" or nodes[source] == "#":
                terms.append("#")
            elif operation == "skip_connect":
                terms.append(nodes[source])
            else:
                terms.append(f"({nodes[source]})@{operation}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def _parse_grammar(text: str) -> Genotype:
    groups = text.split("+")
    if len(groups) != 3:
        raise UsageError("genotype", f"{reprlib.repr(text)} has {len(groups)} nodes; wants 3: {_GRAMMAR} (or {_JSON})")
    cell = []
    for node, group in enumerate(groups, start=1):
        items = group.split("|")
        if len(items) != node + 2 or items[0] or items[-1]:
            wanted = "".join(f"|op~{source}" for source in range(node)) + "|"
            raise UsageError("genotype", f"node {node}: {reprlib.repr(group)} is not of the form {wanted}")
        for source, item in enumerate(items[1:-1]):
            place = f"node {node}, input {source}: {reprlib.repr(item)}"
            operation, tilde, written = item.partition("~")
            if not tilde:
                raise UsageError("genotype", f"{place} lacks ~; wants op~{source}")
            if written != str(source):
                raise UsageError("genotype", f"{place} wants op~{source}; the inputs of a node go in order")
            cell.append(operation)
    return Genotype(tuple(cell))


def _parse_json(text: str) -> Genotype:
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError("genotype", f"is not JSON ({error}); wants {_JSON}") from error
    if set(record) != {"space", "cell"}:
        raise UsageError("genotype", f"has the JSON keys {reprlib.repr(sorted(record))}; wants {_JSON}")
    if record["space"] not in _FAMILY:
        raise UsageError(
            "genotype", f"is a cell of {reprlib.repr(record['space'])}; wants space {' or '.join(_FAMILY)}"
        )
    cell = record["cell"]
    return Genotype(tuple(cell) if isinstance(cell, list) else cell)
