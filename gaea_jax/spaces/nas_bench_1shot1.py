"""The three search spaces of NAS-Bench-1Shot1: cells of NAS-Bench-101 as choice blocks, so that a supernet holds them.

A cell has an input, 4 or 5 choice blocks with an operation each, and an output. Of the nodes before it a block, and
the output too, reads a number that the space fixes; nodes on no path to the output are loose ends, which do not count
(`NAS-Bench-1Shot1 <https://arxiv.org/abs/2001.10422>`_, section 3). So a genotype is a cell of NAS-Bench-101, whose
table says how good it is, and several genotypes are the same cell.
"""

import dataclasses
import itertools
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.spaces import nas_bench_101
from gaea_jax.spaces.base import Choice, Graph, check_tables

_FAMILY = "nas_bench_1shot1"

OPERATIONS = ("maxpool3x3", "conv3x3-bn-relu", "conv1x1-bn-relu")
"""The operations, in the order of the columns of the released code's tables."""

_JSON = '{"space": "nas_bench_1shot1_1", "operations": [...], "parents": [[nodes that block 1 reads], ..., [output]]}'


@dataclasses.dataclass(frozen=True)
class Genotype:
    """One cell, with its loose ends.

    Attributes:
      operations: those of the choice blocks, in order.
      parents: for each block, and then for the output, the nodes that it reads, in order; 0 is the input, and n is
        block n.

    Raises:
      UsageError: on ``genotype``, if an operation is unknown, or nodes are read that are not before the reader.

    Example:
      >>> genotype = Genotype(("maxpool3x3", "conv3x3-bn-relu"), ((0,), (0, 1), (0, 2)))
      >>> genotype.cell().edges
      ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3))
    """

    operations: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for operation in self.operations:
            if operation not in OPERATIONS:
                accepted = ", ".join(OPERATIONS)
                raise UsageError("genotype", f"operation {reprlib.repr(operation)} is unknown; known are {accepted}")
        if len(self.parents) != len(self.operations) + 1:
            wanted = f"{len(self.operations) + 1} nodes"
            raise UsageError("genotype", f"wants what {wanted} read, the last the output; has {len(self.parents)}")
        for node, read in enumerate(self.parents, start=1):
            if list(read) != sorted(set(read)) or not all(type(p) is int and 0 <= p < node for p in read):
                name = _name(node, len(self.operations))
                raise UsageError("genotype", f"{name} reads {reprlib.repr(read)}; wants nodes 0 to {node - 1} in order")

    def __str__(self) -> str:
        parents = [list(read) for read in self.parents]
        return json.dumps({"space": self.space, "operations": list(self.operations), "parents": parents})

    @property
    def space(self) -> str:
        """Name of the space whose nodes read as many; that of no space, if there is none."""
        numbers = tuple(map(len, self.parents))
        return next((space.name for space in (SPACE_1, SPACE_2, SPACE_3) if space.parents == numbers), _FAMILY)

    def cell(self) -> nas_bench_101.Genotype:
        """The cell of NAS-Bench-101, loose ends pruned.

        Raises:
          UsageError: on ``genotype``, if input and output are not connected.
        """
        matrix = np.zeros((len(self.operations) + 2,) * 2, bool)
        for node, read in enumerate(self.parents, start=1):
            matrix[list(read), node] = True
        return nas_bench_101.pruned(matrix, self.operations)


@dataclasses.dataclass(frozen=True)
class NASBench1Shot1:
    """One of the three spaces.

    Attributes:
      name: name of the space.
      parents: how many nodes each choice block reads, and then the output.
    """

    name: str
    parents: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """How many choice blocks a cell has."""
        return len(self.parents) - 1

    @property
    def choices(self) -> dict[str, Choice]:
        """An operation for each block, and what the blocks and the output read.

        ``inputs`` is flat: for each block that does not read all nodes before it a simplex over these.
        """
        numbers = tuple(map(str, range(self.blocks + 1)))
        chosen = [block for block in range(1, self.blocks + 1) if self._chooses(block)]
        options = tuple(f"{block}<-{source}" for block in chosen for source in range(block))
        segments = tuple(row for row, block in enumerate(chosen) for _ in range(block))
        return {
            "operations": Choice(OPERATIONS, numbers[1:], "op"),
            "inputs": Choice(options, tuple(map(str, chosen)), "input", segments),
            "output": Choice(numbers, ("output",), "output"),
        }

    def _chooses(self, block: int) -> bool:
        """Whether a block does not read all nodes before it."""
        return self.parents[block - 1] < block

    def by_block(self, inputs: Any) -> dict[int, Any]:
        """The flat table of inputs as a row for each block that chooses.

        Args:
          inputs: an array of the shape of the table.

        Returns:
          By block, counted from 1, what its inputs have: the input of the cell and the blocks before.
        """
        rows, first = {}, 0
        for block in range(1, self.blocks + 1):
            if self._chooses(block):
                rows[block] = inputs[first : first + block]
                first += block
        return rows

    def select(self, weights: Mapping[str, jax.typing.ArrayLike]) -> dict[str, jax.Array]:
        """The largest operation of each block, and as many of the largest inputs as each node reads.

        Of equal ones the first operation and the lower nodes are kept. Usable inside jit.

        Args:
          weights: ``operations`` [blocks, 3], ``inputs`` (flat) and ``output`` [1, blocks + 1], real or bool.

        Returns:
          Bool tables of these shapes.

        Raises:
          UsageError: on ``weights``, for a missing or unknown table or another shape.

        Example:
          >>> uniform = {name: choice.uniform() for name, choice in SPACE_2.choices.items()}
          >>> SPACE_2.decode(SPACE_2.select(uniform)).parents
          ((0,), (0,), (0, 1), (0, 1), (0, 1, 2))
        """
        check_tables(self.choices, weights, "weights")
        best = jnp.argmax(jnp.asarray(weights["operations"]), axis=-1)
        rows = self.by_block(jnp.asarray(weights["inputs"], float))
        kept = [simplex.largest(row, self.parents[block - 1]) for block, row in rows.items()]
        return {
            "operations": jax.nn.one_hot(best, len(OPERATIONS), dtype=bool),
            "inputs": jnp.concatenate(kept),
            "output": simplex.largest(jnp.asarray(weights["output"], float), self.parents[-1]),
        }

    def decode(self, selection: Mapping[str, jax.typing.ArrayLike]) -> Genotype:
        """The genotype of a concrete selection.

        Args:
          selection: bool tables of the shapes of `choices`, in each simplex as many True as the space says.

        Returns:
          The genotype.

        Raises:
          UsageError: on ``selection``, for anything else.
        """
        check_tables(self.choices, selection, "selection")
        tables = {name: np.asarray(table) for name, table in selection.items()}
        rows = self.by_block(tables["inputs"])
        read = [rows.get(block, np.ones(block, bool)) for block in range(1, self.blocks + 1)] + [tables["output"][0]]
        numbers = tuple(int(row.sum()) for row in read)
        bools = all(table.dtype == bool for table in tables.values())
        if not bools or (tables["operations"].sum(axis=1) != 1).any() or numbers != self.parents:
            accepted = f"an operation a block, and {self.parents} inputs of the blocks and the output"
            raise UsageError("selection", f"wants bool tables with {accepted}")
        operations = tuple(OPERATIONS[column] for column in tables["operations"].argmax(axis=1))
        return Genotype(operations, tuple(tuple(np.flatnonzero(row).tolist()) for row in read))

    def encode(self, genotype: Genotype) -> dict[str, jax.Array]:
        """The selection of a genotype: the inverse of `decode`.

        Args:
          genotype: a cell of this space.

        Returns:
          Bool tables of the shapes of `choices`.

        Raises:
          UsageError: on ``genotype``, if it is of another space.
        """
        self.check(genotype)
        operations = [[operation == option for option in OPERATIONS] for operation in genotype.operations]
        chosen = [block for block in range(1, self.blocks + 1) if self._chooses(block)]
        inputs = [source in genotype.parents[block - 1] for block in chosen for source in range(block)]
        output = [[source in genotype.parents[-1] for source in range(self.blocks + 1)]]
        return {name: jnp.asarray(t) for name, t in zip(self.choices, (operations, inputs, output), strict=True)}

    def parse(self, text: str) -> Genotype:
        """Reads the JSON that ``str`` of a genotype gives; white space around it is ignored.

        Args:
          text: ``{"space": "nas_bench_1shot1_1", "operations": [...], "parents": [[0], ..., [output]]}``.

        Returns:
          The genotype; ``parse(str(g)) == g``.

        Raises:
          UsageError: on ``genotype``, with what is wrong.

        Example:
          >>> genotype = SPACE_1.random(np.random.default_rng(0))
          >>> SPACE_1.parse(str(genotype)) == genotype
          True
        """
        try:
            record: Any = json.loads(text)
            space, operations, parents = (record[name] for name in ("space", "operations", "parents"))
            genotype = Genotype(tuple(operations), tuple(tuple(read) for read in parents))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError("genotype", f"{reprlib.repr(text)} is not of the form {_JSON}") from error
        if len(record) != 3:
            raise UsageError("genotype", f"{reprlib.repr(text)} is not of the form {_JSON}")
        self.check(genotype)
        if space != self.name:
            raise UsageError("genotype", f"says that it is of {reprlib.repr(space)}; wants one of {self.name}")
        return genotype

    def check(self, genotype: Genotype) -> None:
        """Refuses what is not a cell of this space.

        Args:
          genotype: the cell to check.

        Raises:
          UsageError: on ``genotype``, saying what the space has instead.
        """
        if not isinstance(genotype, Genotype):
            raise UsageError("genotype", f"wants a cell of {self.name}, got {reprlib.repr(genotype)}")
        numbers = tuple(map(len, genotype.parents))
        if numbers != self.parents:
            accepted = f"{self.name}, whose {self.blocks} blocks and output read {self.parents} nodes"
            raise UsageError("genotype", f"is not of {accepted}; has {numbers}")

    def graphs(self, genotype: Genotype) -> dict[str, Graph]:
        """The cell of NAS-Bench-101, for drawing: without loose ends, its operations in the nodes.

        Args:
          genotype: a cell.

        Returns:
          ``{"cell": graph}`` with edges that have no label.
        """
        cell = genotype.cell()
        short = (
            operation.removesuffix("-bn-relu").replace("3x3", "\n3x3").replace("1x1", "\n1x1")
            for operation in cell.operations
        )
        return {"cell": Graph(("input", *short, "output"), tuple((*edge, "") for edge in cell.edges))}

    def random(self, rng: np.random.Generator) -> Genotype:
        """A genotype drawn uniformly from the space.

        Args:
          rng: source of randomness; advances.

        Returns:
          The genotype.
        """
        operations = tuple(OPERATIONS[i] for i in rng.integers(len(OPERATIONS), size=self.blocks))
        parents = (
            tuple(sorted(rng.choice(node, size, replace=False).tolist()))
            for node, size in enumerate(self.parents, start=1)
        )
        return Genotype(operations, tuple(parents))

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """Changes one operation, or one of the nodes that a block or the output reads.

        Drawn uniformly from all such changes; the new node is one that is not read there yet.

        Args:
          genotype: a cell of this space.
          rng: source of randomness; advances.

        Returns:
          A genotype that differs in exactly one operation or one input.

        Raises:
          UsageError: on ``genotype``, if it is of another space.
        """
        self.check(genotype)
        changes = []
        for block, operation in enumerate(genotype.operations):
            for other in OPERATIONS:
                if other != operation:
                    operations = (*genotype.operations[:block], other, *genotype.operations[block + 1 :])
                    changes.append(Genotype(operations, genotype.parents))
        for place, read in enumerate(genotype.parents):
            for old, new in itertools.product(read, set(range(place + 1)) - set(read)):
                changed = tuple(sorted((set(read) - {old}) | {new}))
                parents = (*genotype.parents[:place], changed, *genotype.parents[place + 1 :])
                changes.append(Genotype(genotype.operations, parents))
        return changes[rng.integers(len(changes))]

    def count(self) -> int:
        """Number of genotypes, loose ends included."""
        inputs = math.prod(math.comb(node, size) for node, size in enumerate(self.parents, start=1))
        return inputs * len(OPERATIONS) ** self.blocks

    def connectivities(self) -> Iterator[tuple[tuple[int, ...], ...]]:
        """What the nodes of a genotype may read, all ways of it."""
        ways = (itertools.combinations(range(node), size) for node, size in enumerate(self.parents, start=1))
        return itertools.product(*ways)

    def genotypes(self) -> Iterator[Genotype]:
        """All genotypes, loose ends included."""
        for parents in self.connectivities():
            for operations in itertools.product(OPERATIONS, repeat=self.blocks):
                yield Genotype(operations, parents)

    def cells(self) -> list[nas_bench_101.Genotype]:
        """The different cells of NAS-Bench-101 that the genotypes are; of equal ones the first.

        Returns:
          2,685, 7,773 and 55,854 cells of the three spaces.
        """
        pools = (nas_bench_101.OPERATIONS[0],) * self.blocks
        bare = {Genotype(pools, parents).cell().edges: None for parents in self.connectivities()}
        found: dict[tuple[int, int], nas_bench_101.Genotype] = {}
        for edges in bare:
            inner = max(node for _, node in edges) - 1
            matrix = np.zeros((inner + 2,) * 2, bool)
            matrix[tuple(np.transpose(edges))] = True
            labels = np.array(list(itertools.product(range(len(OPERATIONS)), repeat=inner)), int).reshape(-1, inner)
            for number, row in zip(nas_bench_101.canonical(matrix[None], labels).tolist(), labels, strict=True):
                if (inner, number) not in found:
                    operations = tuple(nas_bench_101.OPERATIONS[label] for label in row)
                    found[inner, number] = nas_bench_101.Genotype(edges, operations)
        return list(found.values())


SPACE_1 = NASBench1Shot1("nas_bench_1shot1_1", (1, 2, 2, 2, 2))
"""Four blocks; 14,580 genotypes, 2,685 cells."""

SPACE_2 = NASBench1Shot1("nas_bench_1shot1_2", (1, 1, 2, 2, 3))
"""Four blocks; 29,160 genotypes, 7,773 cells."""

SPACE_3 = NASBench1Shot1("nas_bench_1shot1_3", (1, 1, 1, 2, 2, 2))
"""Five blocks; 1,312,200 genotypes, 55,854 cells."""


def _name(node: int, blocks: int) -> str:
    return f"block {node}" if node <= blocks else "the output"
