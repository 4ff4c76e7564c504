"""Benchmarks for black-box search, made of the files of their tables."""

import dataclasses
import os
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.benchmarks.base import Benchmark, Candidates, edge_candidates
from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.benchmarks.tabular import PREFIXES, load_table
from gaea_jax.errors import UsageError
from gaea_jax.spaces import nas_bench_101, nas_bench_201
from gaea_jax.spaces.grammar import FIRST_OPERATION, INPUT, OUTPUT, CellGraph, operations_on_edges
from gaea_jax.spaces.nas_bench_201 import NASBench201

IDENTITIES = ("class", "cell")

Path = str | os.PathLike[str]


class Signal(NamedTuple):
    """What a search sees of a table. Which values there are, the benchmark says.

    Attributes:
      dataset: what the cells were trained on; of TransNAS-Bench-101 the task.
      metric: "valid" or "test"; of a single training also "valtest", both together.
      epochs: of the training; the longest that the table has by default.
      identity: whether a query is a "cell", or, of NAS-Bench-201, a "class" of cells that compute the same.
      training: number of a single training, from 0, and not the mean of all; what was not trained so often is not
        feasible.
    """

    dataset: str = "cifar10"
    metric: str = "valid"
    epochs: int | None = None
    identity: str = "cell"
    training: int | None = None


def nas_bench_201_benchmark(path: Path, signal: Signal, space: NASBench201, latency: Path | None = None) -> Benchmark:
    """All cells of a space of NAS-Bench-201, with the accuracies of its table.

    Args:
      path: see `gaea_jax.benchmarks.tabular`. Arrays ``params_m`` and ``flops_m_computed`` (millions of parameters and
        of multiply-adds), if the file has them, become costs.
      signal: accuracy in percent. Single trainings are arrays ``c10_valid_200_seeds`` and the like, float
        [15625, trainings], NaN where there was none.
      space: with or without ``none``.
      latency: ``.npz`` of ``latency_ms`` float [15625, devices] and the names ``devices``, which become costs too.

    Returns:
      The `Benchmark`; it reports ``valid`` and ``test``, accuracies of the data set after 200 epochs.

    Raises:
      UsageError: on ``table`` or ``latency``, if the file is not of this form; on what of the signal it does not have.
    """
    _check_known("identity", signal.identity, IDENTITIES)
    epochs = signal.epochs or 200
    table = load_table(path)
    if signal.training is None:
        scores = np.asarray(table.scores(signal.dataset, signal.metric, epochs))
    else:
        table.scores(signal.dataset)  # Refuses an unknown data set.
        scores = _training(path, f"{PREFIXES[signal.dataset]}_{signal.metric}_{epochs}_seeds", signal.training)
    genotypes = list(space.genotypes())
    rows = np.array([table.index(genotype) for genotype in genotypes])
    costs = read_arrays(path, ("params_m", "flops_m_computed"))
    if latency is not None:
        costs |= _latencies(latency)
    classes = None
    if signal.identity == "class":
        _, classes = np.unique([nas_bench_201.canonical(genotype) for genotype in genotypes], return_inverse=True)
    candidates = edge_candidates(operations_on_edges(space.operations), _digits(space, genotypes), classes)
    trained = np.isfinite(scores[rows])
    return Benchmark(
        space.name,
        dataclasses.replace(candidates, feasible=jnp.asarray(trained)),
        np.where(trained, scores[rows], 0),
        {metric: np.asarray(table.scores(signal.dataset, metric))[rows] for metric in ("valid", "test")},
        {
            name: _per_row(path, name, values, nas_bench_201.NAS_BENCH_201.count())[rows]
            for name, values in costs.items()
        },
        lambda row: str(genotypes[row]),
        lambda text: genotypes.index(space.parse(text)),
    )


def transnas_micro_benchmark(path: Path, signal: Signal) -> Benchmark:
    """All 4,096 cells of TransNAS-Bench-101's micro space on one of seven tasks.

    Each cell is a query of its own: the edges that leave the input of a cell may have a stride there, and then their
    ``skip_connect`` has weights, so that what computes the same in NAS-Bench-201 does not here.

    Args:
      path: ``.npz`` of ``ops`` int [4096, 6], row number = the digits as a base-4 number, ``op_names`` and ``edges`` as
        in NAS-Bench-201, ``tasks`` text [7] and ``val`` float [4096, 7], more is better.
      signal: its data set is the task; there is only "valid", and one length of training.

    Returns:
      The `Benchmark`; it reports ``valid``.

    Raises:
      UsageError: on ``table``, or on what of the signal there is not.

    References:
      Duan et al, `TransNAS-Bench-101 <https://arxiv.org/abs/2105.11871>`_, 2021.
    """
    space = nas_bench_201.TRANSNAS_MICRO
    arrays = _arrays(path, ("ops", "op_names", "edges", "tasks", "val"))
    genotypes = list(space.genotypes())
    digits = _digits(space, genotypes)
    edges = [f"{node}<-{source}" for node, source in nas_bench_201.EDGES]
    wanted = {"op_names": list(space.operations), "edges": edges, "ops": digits.tolist()}
    for name, value in wanted.items():
        if arrays[name].tolist() != value:
            raise UsageError("table", f"{path} is of another space or order; {name} wants {reprlib.repr(value)}")
    tasks, values = arrays["tasks"].tolist(), arrays["val"]
    if not isinstance(tasks, list) or values.shape != (len(genotypes), len(tasks)):
        raise UsageError("table", f"{path}: val is {values.shape}; wants {len(genotypes)} rows and a column a task")
    _check_known("identity", signal.identity, ("cell",))
    _check_has(dataset=(signal.dataset, tasks), metric=(signal.metric, ["valid"]))
    if signal.epochs is not None:
        raise UsageError("epochs", f"cannot be chosen for {space.name}, not even {signal.epochs}")
    scores = _per_row(path, "val", values[:, tasks.index(signal.dataset)], len(genotypes))
    return Benchmark(
        space.name,
        edge_candidates(operations_on_edges(space.operations), digits),
        scores,
        {"valid": scores},
        {},
        lambda row: str(genotypes[row]),
        lambda text: genotypes.index(space.parse(text)),
    )


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
    vertices, adjacency, operations, epochs, parameters = _arrays(path, names).values()
    _check_cells(path, vertices, adjacency, operations)
    _check_known("identity", signal.identity, ("cell",))
    columns = {"valid": "valid_acc", "test": "test_acc"}
    others = read_arrays(path, (*columns.values(), "op_names"))
    if others.get("op_names", np.array(nas_bench_101.OPERATIONS)).tolist() != list(nas_bench_101.OPERATIONS):
        raise UsageError("table", f"{path}: op_names wants {', '.join(nas_bench_101.OPERATIONS)}, in this order")
    there = [metric for metric, column in columns.items() if column in others]
    if epochs.ndim != 1 or epochs.dtype.kind not in "iu" or not len(epochs):
        raise UsageError("table", f"{path}: epochs is {epochs.dtype} {epochs.shape}; wants whole numbers")
    rows, known, longest = len(vertices), epochs.tolist(), int(epochs.max())
    length = longest if signal.epochs is None else signal.epochs
    _check_has(dataset=(signal.dataset, ["cifar10"]), metric=(signal.metric, there), epochs=(length, known))

    def percents(metric: str, place: int) -> np.ndarray:
        values = others[columns[metric]]
        fits = values.shape == (rows, len(known)) and values.dtype.kind == "f"
        if not fits or not (values.min() >= 0 and values.max() <= 1):
            raise UsageError("table", f"{path}: {columns[metric]} wants ({rows}, {len(known)}) numbers from 0 to 1")
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
    costs = {"params_m": _per_row(path, "params", parameters, rows) / np.float32(1e6)}

    def row(text: str) -> int:
        genotype = nas_bench_101.parse(text)
        found = int(candidates.index(nas_bench_101.graph(genotype)))
        if found < 0:
            raise UsageError("genotype", f"{genotype.hash()} is not in the table, which has {rows:,} cells")
        return found

    return Benchmark("nas_bench_101", candidates, scores, reported, costs, text, row)


def _digits(space: NASBench201, genotypes: list[nas_bench_201.Genotype]) -> np.ndarray:
    return np.array([[space.operations.index(operation) for operation in genotype.cell] for genotype in genotypes])


def _check_known(argument: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(argument, f"{value!r} is not known here; known are {', '.join(known)}")


def _check_has(**wanted: tuple[Any, Sequence[Any]]) -> None:
    for argument, (value, there) in wanted.items():
        if value not in there:
            raise UsageError(argument, f"{value!r} is not in the table, which has {', '.join(map(str, there))}")


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


def _training(path: Path, name: str, training: int) -> np.ndarray:
    arrays = read_arrays(path, (name,))
    if name not in arrays:
        raise UsageError("training", f"needs the array {name}, which {path} lacks")
    values = arrays[name]
    if values.ndim != 2 or len(values) != nas_bench_201.NAS_BENCH_201.count() or values.dtype.kind != "f":
        raise UsageError("table", f"{path}: {name} is {values.dtype} {values.shape}; wants float (15625, trainings)")
    if not 0 <= training < values.shape[1]:
        raise UsageError("training", f"must be 0 to {values.shape[1] - 1} for {name}, not {training}")
    return values[:, training].astype(np.float32)


def _latencies(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = _arrays(path, ("latency_ms", "devices"))
    except UsageError as error:
        raise UsageError("latency", error.sentence) from error
    values, devices = arrays["latency_ms"], arrays["devices"].tolist()
    wanted = (nas_bench_201.NAS_BENCH_201.count(), len(devices))
    if values.shape != wanted or not np.isfinite(values).all():
        raise UsageError("latency", f"{path}: latency_ms is {values.shape}; wants finite numbers {wanted}")
    return dict(zip(devices, values.T, strict=True))


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise UsageError("table", f"{path} lacks the arrays {', '.join(missing)}")
    return arrays


def _per_row(path: Path, name: str, values: np.ndarray, rows: int) -> np.ndarray:
    if values.shape != (rows,) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UsageError("table", f"{path}: {name} wants {rows} finite numbers")
    return values.astype(np.float32)


SPACES = ("nas_bench_201", "nas_bench_201_nozero", "transnas_micro", "nas_bench_101")


def load_benchmark(space: str, path: Path, signal: Signal, latency: Path | None = None) -> Benchmark:
    """The benchmark of a space.

    Args:
      space: one of `SPACES`.
      path: its table.
      signal: what a search sees of it.
      latency: of NAS-Bench-201, a table of latencies, which become costs.

    Returns:
      The `Benchmark`.

    Raises:
      UsageError: on ``space``, ``table``, ``latency``, or what of the signal the table does not have.
    """
    if space not in SPACES:
        raise UsageError("space", f"{space!r} has no benchmark; those with one are {', '.join(SPACES)}")
    if space.startswith("nas_bench_201"):
        chosen = nas_bench_201.NAS_BENCH_201 if space == "nas_bench_201" else nas_bench_201.NAS_BENCH_201_NOZERO
        return nas_bench_201_benchmark(path, signal, chosen, latency)
    for argument, given in (("latency", latency), ("training", signal.training)):
        if given is not None:
            raise UsageError(argument, f"is for NAS-Bench-201, not for {space}")
    return (transnas_micro_benchmark if space == "transnas_micro" else nas_bench_101_benchmark)(path, signal)
