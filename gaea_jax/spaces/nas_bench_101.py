"""The cells of NAS-Bench-101: any directed acyclic graph of at most seven nodes and nine edges.

Node 0 is the input, the last the output; those between carry an operation each. Nodes on no path from input to output
do not count: they are pruned before a cell is looked up (`NAS-Bench-101
<https://arxiv.org/abs/1902.09635>`_, section 2).
Cells are equal if their graphs are isomorphic; the benchmark names a cell by a hash that is the same for all orders of
its nodes.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.errors import UsageError
from gaea_jax.spaces.grammar import FIRST_OPERATION, INPUT, OUTPUT, CellGraph, Grammar

OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
"""The operations, in the order in which the benchmark's hash counts them."""

MAX_NODES = 7
MAX_EDGES = 9

_PAIRS = tuple(itertools.combinations(range(MAX_NODES), 2))
_JSON = '{"space": "nas_bench_101", "edges": [[source, node], ...], "operations": [...]}'


@dataclasses.dataclass(frozen=True)
class Genotype:
    """One cell, without nodes that do not count.

    Attributes:
      edges: the edges as (source, node), sorted; node 0 is the input and the last node the output.
      operations: those of the nodes between, in their order.

    Raises:
      UsageError: on ``genotype``, if it is no cell of the benchmark, with what is wrong.

    Example:
      >>> Genotype(((0, 1), (0, 2), (1, 2)), ("conv3x3-bn-relu",)).hash()
      'd32d0b26d534203b48d866facd98cc3e'
    """

    edges: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        nodes = len(self.operations) + 2
        for operation in self.operations:
            if operation not in OPERATIONS:
                known = ", ".join(OPERATIONS)
                raise UsageError("genotype", f"operation {reprlib.repr(operation)} is unknown; known are {known}")
        if list(self.edges) != sorted(set(self.edges)) or not all(0 <= s < t < nodes for s, t in self.edges):
            raise UsageError(
                "genotype", f"wants its edges sorted, as pairs of nodes 0 to {nodes - 1}, the source first"
            )
        if nodes > MAX_NODES or len(self.edges) > MAX_EDGES:
            size = f"{nodes} nodes and {len(self.edges)} edges"
            raise UsageError("genotype", f"has {size}; wants at most {MAX_NODES} and {MAX_EDGES}")
        if not _on_paths(self.matrix()).all():
            raise UsageError("genotype", "has nodes on no path from input to output; see `pruned`")

    def __str__(self) -> str:
        edges = [list(edge) for edge in self.edges]
        return json.dumps({"space": "nas_bench_101", "edges": edges, "operations": list(self.operations)})

    def matrix(self) -> np.ndarray:
        """The adjacency matrix, bool [nodes, nodes]; rows are sources."""
        matrix = np.zeros((len(self.operations) + 2,) * 2, bool)
        for source, node in self.edges:
            matrix[source, node] = True
        return matrix

    def hash(self) -> str:
        """The benchmark's name of the cell, 32 hexadecimal digits, equal exactly for isomorphic cells.

        Each node starts as the digest (MD5) of its degrees and label, and takes in, as many times as there are nodes,
        the sorted digests of its inputs and of what reads it (the released code's ``hash_module``).
        """
        matrix = self.matrix()
        nodes = range(len(matrix))
        labels = [-1, *(OPERATIONS.index(operation) for operation in self.operations), -2]
        degrees = zip(matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist(), labels, strict=True)
        names = [_md5(str(node)) for node in degrees]
        for _ in nodes:
            inputs = ["".join(sorted(names[source] for source in nodes if matrix[source, node])) for node in nodes]
            readers = ["".join(sorted(names[reader] for reader in nodes if matrix[node, reader])) for node in nodes]
            names = [_md5("|".join(parts)) for parts in zip(inputs, readers, names, strict=True)]
        return _md5(str(sorted(names)))


def pruned(matrix: np.ndarray, operations: Sequence[str]) -> Genotype:
    """The cell of an adjacency matrix, without what lies on no path from input to output.

    Args:
      matrix: 0 and 1 or bool [nodes, nodes], upper triangular, rows are sources.
      operations: those of the nodes between the first and the last.

    Returns:
      The genotype.

    Raises:
      UsageError: on ``genotype``, if the matrix has another form, input and output are not connected, or what is left
        is no cell of the benchmark.

    Example:
      >>> pruned(np.array([[0, 1, 1], [0, 0, 0], [0, 0, 0]]), ["maxpool3x3"]).edges
      ((0, 1),)
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(operations) + 2,) * 2 or not np.isin(matrix, (0, 1)).all() or np.tril(matrix).any():
        raise UsageError("genotype", f"wants an upper triangular matrix of 0 and 1 for {len(operations) + 2} nodes")
    kept = _on_paths(matrix.astype(bool))
    if not kept[[0, -1]].all():
        raise UsageError("genotype", "has no path from input to output")
    edges = np.argwhere(matrix.astype(bool)[np.ix_(kept, kept)])
    inner = [operation for operation, keep in zip(operations, kept[1:-1], strict=True) if keep]
    return Genotype(tuple((int(source), int(node)) for source, node in edges), tuple(inner))


def parse(text: str) -> Genotype:
    """Reads the JSON that ``str`` of a genotype gives.

    Args:
      text: ``{"space": "nas_bench_101", "edges": [[source, node], ...], "operations": [...]}``.

    Returns:
      The genotype; ``parse(str(g)) == g``.

    Raises:
      UsageError: on ``genotype``, with what is wrong.
    """
    try:
        record: Any = json.loads(text)
        space, edges, operations = (record[name] for name in ("space", "edges", "operations"))
        pairs, names = tuple((source, node) for source, node in edges), tuple(operations)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError("genotype", f"{reprlib.repr(text)} is not of the form {_JSON}") from error
    numbers = all(type(number) is int for pair in pairs for number in pair)
    if space != "nas_bench_101" or len(record) != 3 or not numbers:
        raise UsageError("genotype", f"{reprlib.repr(text)} is not of the form {_JSON}")
    return Genotype(pairs, names)


def _on_paths(matrix: np.ndarray) -> np.ndarray:
    """Which nodes lie on a path from the first to the last, bool [nodes]."""
    nodes = len(matrix)
    reach = np.eye(nodes, dtype=bool) | matrix
    for _ in range(nodes):
        reach = reach | (reach.astype(int) @ reach.astype(int) > 0)
    return reach[0] & reach[:, -1]


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _start() -> CellGraph:
    labels = jnp.full(MAX_NODES, len(_LABELS) - 1, jnp.int32).at[0].set(INPUT)
    return CellGraph(labels, jnp.zeros((MAX_NODES, MAX_NODES), bool))


def _label_mask(graph: CellGraph, node: jax.Array) -> jax.Array:
    """Any operation, as long as a cell that ends right after it has a place for its edges; or the output."""
    finished = jnp.any(graph.labels == OUTPUT)
    edges, dangling = _edges(graph), _dangling(graph, node)
    more = (node < MAX_NODES - 1) & (edges + jnp.sum(dangling) + 1 <= MAX_EDGES)
    operations = jnp.full(len(OPERATIONS), more)
    open_mask = jnp.concatenate([jnp.array([False, True]), operations, jnp.array([False])])
    closed = jnp.arange(len(_LABELS)) == len(_LABELS) - 1
    return jnp.where(finished, closed, open_mask)


def _edge_mask(graph: CellGraph, node: jax.Array, source: jax.Array) -> jax.Array:
    """An operation needs an input and leaves room for an edge of its own; the output reads what nothing reads."""
    label = graph.labels[node]
    earlier = source < node
    written = (label != len(_LABELS) - 1) & earlier
    edges, dangling = _edges(graph), _dangling(graph, node)
    left = jnp.sum(dangling) - dangling[source]
    room = jnp.where(label == OUTPUT, edges + jnp.sum(dangling) < MAX_EDGES, edges + 1 + left + 1 <= MAX_EDGES)
    last = (source == node - 1) & ~jnp.any(graph.adjacency[:, node])
    forced = jnp.where(label == OUTPUT, dangling[source], last)
    return jnp.stack([~(written & forced), written & (forced | room)])


def _edges(graph: CellGraph) -> jax.Array:
    return jnp.sum(graph.adjacency, dtype=jnp.int32)


def _dangling(graph: CellGraph, node: jax.Array) -> jax.Array:
    """The nodes before ``node`` that nothing reads yet, bool [nodes]."""
    return ~jnp.any(graph.adjacency, axis=1) & (jnp.arange(MAX_NODES) < node)


_LABELS = ("input", "output", *OPERATIONS, "-")

GRAMMAR = Grammar(_LABELS, MAX_NODES, MAX_NODES - 1, _start, _label_mask, _edge_mask, fixed=False)
"""Writes every cell whose nodes all count, in each topological order of its nodes, and nothing else."""


def graphs(cells: Sequence[Genotype]) -> CellGraph:
    """Cells as the grammar writes them.

    Args:
      cells: the genotypes.

    Returns:
      Their padded arrays, labels [cells, 7] and adjacency [cells, 7, 7].
    """
    labels = np.full((len(cells), MAX_NODES), GRAMMAR.none, np.int32)
    adjacency = np.zeros((len(cells), MAX_NODES, MAX_NODES), bool)
    for row, cell in enumerate(cells):
        inner = [FIRST_OPERATION + OPERATIONS.index(operation) for operation in cell.operations]
        labels[row, : len(inner) + 2] = [INPUT, *inner, OUTPUT]
        adjacency[row, : len(inner) + 2, : len(inner) + 2] = cell.matrix()
    return CellGraph(jnp.asarray(labels), jnp.asarray(adjacency))


class Enumeration(NamedTuple):
    """All cells in all topological orders of their nodes, and which of them are the same cell.

    Attributes:
      dags: int32 [6472], graphs without labels as 21 bits: pair number p of ``combinations(range(7), 2)`` is bit p.
      nodes: int32 [6472], nodes of each.
      offsets: int32 [6472], the place of the first labelling of each in ``cells``. The labellings of a graph are
        numbered in base 3, the first operation most significant.
      cells: int64 [1293208], a number for each labelled graph, equal exactly for isomorphic ones.
    """

    dags: np.ndarray
    nodes: np.ndarray
    offsets: np.ndarray
    cells: np.ndarray


@functools.cache
def enumerate_cells() -> Enumeration:
    """All cells of the space, 423,624 up to isomorphism; takes a few seconds."""
    dags, nodes, cells = [], [], []
    for count in range(2, MAX_NODES + 1):
        matrices = _full_dags(count)
        dags.append(bits(matrices))
        nodes.append(np.full(len(matrices), count, np.int32))
        inner = count - 2
        labellings = (
            np.stack(np.unravel_index(np.arange(3**inner), (3,) * inner), -1) if inner else np.zeros((1, 0), int)
        )
        cells.append(canonical(matrices[:, None], labellings[None]).ravel())
    sizes = 3 ** (np.concatenate(nodes) - 2)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return Enumeration(np.concatenate(dags), np.concatenate(nodes), offsets.astype(np.int32), np.concatenate(cells))


def bits(matrices: np.ndarray) -> np.ndarray:
    """Upper triangular matrices, bool [..., n, n] with n at most 7, as numbers of 21 bits, int32 [...]."""
    number = np.zeros(matrices.shape[:-2], np.int32)
    for bit, (source, node) in enumerate(_PAIRS):
        if node < matrices.shape[-1]:
            number |= matrices[..., source, node].astype(np.int32) << bit
    return number


def _full_dags(count: int) -> np.ndarray:
    """All graphs of that many nodes, each on a path, with few enough edges, bool [graphs, count, count]."""
    pairs = [pair for pair in _PAIRS if pair[1] < count]
    numbers = np.arange(2 ** len(pairs))
    numbers = numbers[np.bitwise_count(numbers) <= MAX_EDGES]
    matrices = np.zeros((len(numbers), count, count), bool)
    for bit, (source, node) in enumerate(pairs):
        matrices[:, source, node] = numbers >> bit & 1
    read, reads = np.asarray(matrices[:, :-1].any(axis=2)), np.asarray(matrices[:, :, 1:].any(axis=1))
    return matrices[read.all(axis=1) & reads.all(axis=1)]


def canonical(matrices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The numbers of cells, as in `Enumeration`: the least spelling of each over all orders of its inner nodes.

    Args:
      matrices: bool [..., n, n], cells of n nodes that all count.
      labels: int [..., n - 2], numbers of `OPERATIONS`; its leading axes and those of the matrices are broadcast.

    Returns:
      int64 [...], equal exactly for isomorphic cells.
    """
    count = matrices.shape[-1]
    powers = 2 ** np.arange(count * count, dtype=np.int64) << 8
    places = 3 ** np.arange(count - 2, dtype=np.int64)
    spellings = []
    for order in itertools.permutations(range(count - 2)):
        inner = np.array(order, int)
        nodes = np.array([0, *(inner + 1), count - 1])
        graphs = matrices[..., nodes, :][..., nodes]
        spellings.append((graphs.reshape(*graphs.shape[:-2], -1) @ powers, labels[..., inner] @ places))
    return functools.reduce(np.minimum, (graph + labelling for graph, labelling in spellings))
