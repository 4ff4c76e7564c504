"""NAS-Bench-101: the cells that a table has, for searches by queries and as the truth of searches by gradient."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.benchmarks.base import Benchmark, Candidates
from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.benchmarks.signal import Path, Signal, all_arrays, check_has, check_known, per_row
from gaea_jax.errors import UsageError
from gaea_jax.spaces import nas_bench_101
from gaea_jax.spaces.grammar import FIRST_OPERATION, INPUT, OUTPUT, CellGraph
from gaea_jax.spaces.nas_bench_1shot1 import Genotype, NASBench1Shot1

# The arrays of a table by the accuracy that they have.
COLUMNS = {"valid": "valid_acc", "test": "test_acc"}


@dataclasses.dataclass(frozen=True, eq=False)
class CellTable:
    """What a table of NAS-Bench-101 has of the cells of a space of NAS-Bench-1Shot1, which may be few of them.

    Attributes:
      space: the space.
      benchmark: the table.
    """

    space: NASBench1Shot1
    benchmark: Benchmark

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows that are cells of the space, int [n]."""
        found = np.asarray(self.benchmark.candidates.index(nas_bench_101.graphs(self.space.cells())))
        return found[found >= 0]

    @property
    def metric(self) -> str:
        """What ranks and oracles are of: "test" where the table has it, "valid" where not."""
        return "test" if "test" in self.benchmark.reported else "valid"

    def query(self, genotype: Genotype | nas_bench_101.Genotype, metric: str | None = None) -> float | None:
        """The accuracy of a cell after the longest training, on CIFAR-10.

        Args:
          genotype: a genotype of the space, or any cell of NAS-Bench-101.
          metric: ``"valid"`` or ``"test"``, `metric` by default.

        Returns:
          Percent; None for a cell that the table does not have.

        Raises:
          UsageError: for a genotype of another space, or a metric that the table does not have.
        """
        check_has(metric=(metric or self.metric, list(self.benchmark.reported)))
        if isinstance(genotype, nas_bench_101.Genotype):
            cell = genotype
        else:
            self.space.check(genotype)
            cell = genotype.cell()
        row = int(self.benchmark.candidates.index(nas_bench_101.graphs([cell]))[0])
        return None if row < 0 else float(self.benchmark.reported[metric or self.metric][row])

    def summary(self, genotype: Genotype) -> dict[str, dict[str, float | int | str] | None]:
        """What a report says about a cell.

        Args:
          genotype: a cell of the space.

        Returns:
          For ``cifar10`` the accuracies that the table has, in percent; ``metric``, and by it the ``rank`` and the best
          accuracy, ``oracle``, among those ``cells`` of the space that the table has. None for a cell that it has not.

        Raises:
          UsageError: for a genotype of another space.
        """
        found = {metric: self.query(genotype, metric) for metric in self.benchmark.reported}
        accuracies = {metric: percent for metric, percent in found.items() if percent is not None}
        if not accuracies:
            return {"cifar10": None}
        known = self.benchmark.reported[self.metric][self.rows]
        return {
            "cifar10": {
                **accuracies,
                "metric": self.metric,
                "rank": 1 + int(np.count_nonzero(known > accuracies[self.metric])),
                "oracle": float(known.max()),
                "cells": len(known),
            }
        }


def load_cells(path: Path, space: NASBench1Shot1) -> CellTable:
    """Reads a table of NAS-Bench-101 for a space of NAS-Bench-1Shot1.

    Args:
      path: as for `nas_bench_101_benchmark`.
      space: whose cells are looked up.

    Returns:
      The table.

    Raises:
      UsageError: on ``table``.
    """
    there = [metric for metric, column in COLUMNS.items() if column in read_arrays(path, (*COLUMNS.values(),))]
    if not there:
        raise UsageError("table", f"{path} has neither {' nor '.join(COLUMNS.values())}")
    return CellTable(space, nas_bench_101_benchmark(path, Signal(metric=there[0])))


def nas_bench_101_benchmark(path: Path, signal: Signal) -> Benchmark:
    """Those cells of NAS-Bench-101 that a table has, which may be a sample of the 423,624.

    A cell that the table does not have cannot be evaluated, so that a generator writes many to find some that are
    there. Cells are equal if their graphs are isomorphic. There are no neighbours, which a sample has few of.

    Args:
      path: ``.npz`` of ``num_vertices`` int [n], ``adjacency`` [n, 7, 7], ``ops`` [n, 5] (numbers of `OPERATIONS`),
        ``epochs`` int [e], ``valid_acc`` and, if it has them, ``test_acc`` float [n, e] between 0 and 1, ``params``
        [n] and, if it has them, ``op_names`` [3], which are to be `OPERATIONS`.
      signal: of "cifar10", "valid" or "test".

    Returns:
      The `Benchmark`; it reports both after the longest training, in percent, and has the cost ``params_m``.

    Raises:
      UsageError: on ``table``, or on what of the signal there is not.
    """
    names = ("num_vertices", "adjacency", "ops", "epochs", "params")
    vertices, adjacency, operations, epochs, parameters = all_arrays(path, names).values()
    _check_cells(path, vertices, adjacency, operations)
    check_known("identity", signal.identity, ("cell",))
    others = read_arrays(path, (*COLUMNS.values(), "op_names"))
    if others.get("op_names", np.array(nas_bench_101.OPERATIONS)).tolist() != list(nas_bench_101.OPERATIONS):
        raise UsageError("table", f"{path}: op_names wants {', '.join(nas_bench_101.OPERATIONS)}, in this order")
    there = [metric for metric, column in COLUMNS.items() if column in others]
    if epochs.ndim != 1 or epochs.dtype.kind not in "iu" or not len(epochs):
        raise UsageError("table", f"{path}: epochs is {epochs.dtype} {epochs.shape}; wants whole numbers")
    rows, known, longest = len(vertices), epochs.tolist(), int(epochs.max())
    length = longest if signal.epochs is None else signal.epochs
    check_has(dataset=(signal.dataset, ["cifar10"]), metric=(signal.metric, there), epochs=(length, known))

    def percents(metric: str, place: int) -> np.ndarray:
        values = others[COLUMNS[metric]]
        fits = values.shape == (rows, len(known)) and values.dtype.kind == "f"
        if not fits or not (values.min() >= 0 and values.max() <= 1):
            raise UsageError("table", f"{path}: {COLUMNS[metric]} wants ({rows}, {len(known)}) numbers from 0 to 1")
        return (100 * values[:, place]).astype(np.float32)

    none = nas_bench_101.GRAMMAR.none
    labels = np.full((rows, nas_bench_101.MAX_NODES), none, np.int32)
    labels[:, 0] = INPUT
    inner = np.where(np.arange(5) < vertices[:, None] - 2, operations.astype(int) + FIRST_OPERATION, none)
    labels[:, 1:-1] = inner
    labels[np.arange(rows), vertices.astype(int) - 1] = OUTPUT
    candidates = Candidates(
        CellGraph(jnp.asarray(labels), jnp.asarray(adjacency.astype(bool))),
        jnp.arange(rows, dtype=jnp.int32),
        jnp.ones(rows, bool),
        None,
        _dag_index(path, vertices, adjacency.astype(bool), operations.astype(int)),
        nas_bench_101.GRAMMAR,
    )

    def text(row: int) -> str:
        nodes = int(vertices[row])
        inner = [nas_bench_101.OPERATIONS[operation] for operation in operations[row, : nodes - 2]]
        return str(nas_bench_101.pruned(adjacency[row, :nodes, :nodes], inner))

    reported = {metric: percents(metric, known.index(longest)) for metric in there}
    scores = percents(signal.metric, known.index(length))
    costs = {"params_m": per_row(path, "params", parameters, rows) / np.float32(1e6)}

    def row(text: str) -> int:
        genotype = nas_bench_101.parse(text)
        found = int(candidates.index(nas_bench_101.graphs([genotype]))[0])
        if found < 0:
            raise UsageError("genotype", f"{genotype.hash()} is not in the table, which has {rows:,} cells")
        return found

    return Benchmark("nas_bench_101", candidates, scores, reported, costs, text, row)


def _check_cells(path: Path, vertices: np.ndarray, adjacency: np.ndarray, operations: np.ndarray) -> None:
    rows, size = vertices.size, nas_bench_101.MAX_NODES
    for name, array, shape in (
        ("num_vertices", vertices, (rows,)),
        ("adjacency", adjacency, (rows, size, size)),
        ("ops", operations, (rows, size - 2)),
    ):
        if array.shape != shape or array.dtype.kind not in "iub" or not rows:
            raise UsageError("table", f"{path}: {name} is {array.dtype} {array.shape}; wants whole numbers {shape}")
    inner = np.arange(size - 2) < vertices[:, None].astype(int) - 2
    if (
        not ((vertices >= 2) & (vertices <= size)).all()
        or not np.isin(operations[inner], range(len(nas_bench_101.OPERATIONS))).all()
    ):
        raise UsageError("table", f"{path} wants cells of 2 to {size} nodes, with operations 0 to 2")
    nodes = np.arange(size) < vertices[:, None]
    if (adjacency.astype(bool) & ~(nodes[:, :, None] & nodes[:, None])).any():
        raise UsageError("table", f"{path}: adjacency has edges of nodes that num_vertices does not count")


def _dag_index(
    path: Path, vertices: np.ndarray, adjacency: np.ndarray, operations: np.ndarray
) -> Callable[[CellGraph], jax.Array]:
    """Finds the row of a labelled graph: by the bits of its matrix its number, by that and its labels the row."""
    all_cells = nas_bench_101.enumerate_cells()
    numbers = np.zeros(len(vertices), np.int64)
    for nodes in np.unique(vertices):
        here = vertices == nodes
        numbers[here] = nas_bench_101.canonical(adjacency[here, :nodes, :nodes], operations[here, : nodes - 2])
    order = np.argsort(numbers)
    if (np.diff(numbers[order]) == 0).any() or not np.isin(numbers, all_cells.cells).all():
        raise UsageError("table", f"{path} has a cell twice, or graphs that are no cells of NAS-Bench-101")
    place = np.minimum(np.searchsorted(numbers, all_cells.cells, sorter=order), len(numbers) - 1)
    rows = np.where(numbers[order[place]] == all_cells.cells, order[place], -1)
    dag = np.full(2 ** (nas_bench_101.MAX_NODES * (nas_bench_101.MAX_NODES - 1) // 2), -1, np.int32)
    dag[all_cells.dags] = np.arange(len(all_cells.dags))
    return jax.tree_util.Partial(
        _by_dag, *map(jnp.asarray, (dag, all_cells.nodes, all_cells.offsets, rows.astype(np.int32)))
    )


def _by_dag(dags: jax.Array, nodes: jax.Array, offsets: jax.Array, rows: jax.Array, graph: CellGraph) -> jax.Array:
    size = graph.labels.shape[-1]
    sources, targets = np.triu_indices(size, 1)
    bits = jnp.sum(graph.adjacency[..., sources, targets] << np.arange(len(sources)), axis=-1, dtype=jnp.int32)
    dag = dags[bits]
    inner = jnp.arange(1, size - 1)
    last = nodes[dag][..., None] - 1
    digits = jnp.where(inner < last, graph.labels[..., 1:-1] - FIRST_OPERATION, 0)
    powers = jnp.where(inner < last, 3 ** (last - 1 - inner), 0)
    return jnp.where(dag < 0, -1, rows[offsets[dag] + jnp.sum(digits * powers, axis=-1, dtype=jnp.int32)])
