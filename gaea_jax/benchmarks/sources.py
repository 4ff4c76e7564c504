"""Benchmarks for black-box search, made of the files of their tables."""

import dataclasses
import reprlib

import jax.numpy as jnp
import numpy as np

from gaea_jax.benchmarks.base import Benchmark, edge_candidates
from gaea_jax.benchmarks.nas_bench_101 import nas_bench_101_benchmark
from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.benchmarks.signal import Path, Signal, all_arrays, check_has, check_known, per_row
from gaea_jax.benchmarks.tabular import PREFIXES, load_table
from gaea_jax.errors import UsageError
from gaea_jax.spaces import nas_bench_201
from gaea_jax.spaces.grammar import operations_on_edges
from gaea_jax.spaces.nas_bench_201 import NASBench201

IDENTITIES = ("class", "cell")


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
    check_known("identity", signal.identity, IDENTITIES)
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
            name: per_row(path, name, values, nas_bench_201.NAS_BENCH_201.count())[rows]
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
    arrays = all_arrays(path, ("ops", "op_names", "edges", "tasks", "val"))
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
    check_known("identity", signal.identity, ("cell",))
    check_has(dataset=(signal.dataset, tasks), metric=(signal.metric, ["valid"]))
    if signal.epochs is not None:
        raise UsageError("epochs", f"cannot be chosen for {space.name}, not even {signal.epochs}")
    scores = per_row(path, "val", values[:, tasks.index(signal.dataset)], len(genotypes))
    return Benchmark(
        space.name,
        edge_candidates(operations_on_edges(space.operations), digits),
        scores,
        {"valid": scores},
        {},
        lambda row: str(genotypes[row]),
        lambda text: genotypes.index(space.parse(text)),
    )


def _digits(space: NASBench201, genotypes: list[nas_bench_201.Genotype]) -> np.ndarray:
    return np.array([[space.operations.index(operation) for operation in genotype.cell] for genotype in genotypes])


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
        arrays = all_arrays(path, ("latency_ms", "devices"))
    except UsageError as error:
        raise UsageError("latency", error.sentence) from error
    values, devices = arrays["latency_ms"], arrays["devices"].tolist()
    wanted = (nas_bench_201.NAS_BENCH_201.count(), len(devices))
    if values.shape != wanted or not np.isfinite(values).all():
        raise UsageError("latency", f"{path}: latency_ms is {values.shape}; wants finite numbers {wanted}")
    return dict(zip(devices, values.T, strict=True))


_OF_NAS_BENCH_201 = {space.name: space for space in (nas_bench_201.NAS_BENCH_201, nas_bench_201.NAS_BENCH_201_NOZERO)}
_OTHERS = {"transnas_micro": transnas_micro_benchmark, "nas_bench_101": nas_bench_101_benchmark}
SPACES = (*_OF_NAS_BENCH_201, *_OTHERS)


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
    if space in _OF_NAS_BENCH_201:
        return nas_bench_201_benchmark(path, signal, _OF_NAS_BENCH_201[space], latency)
    for argument, given in (("latency", latency), ("training", signal.training)):
        if given is not None:
            raise UsageError(argument, f"is for NAS-Bench-201, not for {space}")
    return _OTHERS[space](path, signal)
