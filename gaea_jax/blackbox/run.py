"""Whole experiments: many trials of an algorithm on a benchmark, from one configuration."""

import dataclasses
import hashlib
import inspect
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gaea_jax.benchmarks import Benchmark, Candidates, Signal, load_benchmark
from gaea_jax.blackbox.base import Algorithm
from gaea_jax.blackbox.evaluators import Evaluate, from_supernet, from_table
from gaea_jax.blackbox.evolution import evolution
from gaea_jax.blackbox.ga_nas import ga_nas
from gaea_jax.blackbox.local_search import local_search
from gaea_jax.blackbox.predictor import predictor_search
from gaea_jax.blackbox.random_search import random_search
from gaea_jax.blackbox.trial import Trial, advance, begin
from gaea_jax.errors import UsageError
from gaea_jax.train.drive import Record, drive
from gaea_jax.train.folder import RunFolder
from gaea_jax.train.loop import Step

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "random": random_search,
    "evolution": evolution,
    "local_search": local_search,
    "predictor": predictor_search,
    "ga_nas": ga_nas,
}
# Queries between two looks at the clock; what is evaluated does not depend on it.
_QUERIES = 10
_AXIS = "trial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackboxConfig:
    """An experiment.

    Attributes:
      space: name of the space: "nas_bench_201", "nas_bench_201_nozero", "transnas_micro" or "nas_bench_101".
      table: file of the benchmark.
      algorithm: "random", "evolution", "local_search", "predictor" or "ga_nas".
      budget: queries of a trial, the initial candidates included.
      trials: how many, of keys that follow from `seed`.
      seed: decides all trials.
      dataset: of the table; of TransNAS-Bench-101 the task.
      metric: the accuracy that the search sees, "valid" or "test"; of a single training also "valtest", both together.
      table_epochs: the length of training that it sees; the longest that the table has by default.
      identity: whether a query is a "cell", or, of NAS-Bench-201, a "class" of cells that compute the same.
      training: see a single training of each cell, this one, from 0, and not the mean of all.
      latency: file of latencies of NAS-Bench-201.
      cost: what is limited or weighed, such as "params_m" or a device of `latency`.
      at_most: the most of `cost`; what is above is never evaluated.
      percentile: the same, as a percentile of the costs of all candidates.
      target: maximise score · (cost / target) ^ -0.07 instead.
      supernet: folder of a bilevel search by gradient on the space. Cells are scored by their accuracy with its weights
        and not by the table, by which results are still ranked.
      eval_images: held-out images that they are scored by.
      start: file with a genotype a line; every trial begins with them, and fills up its initial candidates.
      initial: of "predictor" and "ga_nas", candidates drawn uniformly at first.
      batch: evaluations a round of "predictor" and "ga_nas".
      population: of "evolution".
      tournament: of "evolution".
      truth: of "ga_nas", how many of the best cells are the true ones.
      rounds: of "ga_nas", rounds of its game before each sampling.
      entropy: of "ga_nas", weight of the policy's entropy.
      reset_discriminator: of "ga_nas", draw the discriminator anew before each round of proposals.
      rank: of "ga_nas", evaluate what the discriminator likes best of what was sampled.
      report_every: queries between reports and checkpoints, rounded up to tens; by default a tenth of the budget.
      out: folder of the run. Without, the library writes nothing, and the script takes one in ``runs/``.
      resume: continue the run in `out`.
    """

    space: str = "nas_bench_201"
    table: pathlib.Path | None = None
    algorithm: str = "ga_nas"
    budget: int = 300
    trials: int = 100
    seed: int = 0
    dataset: str = "cifar10"
    metric: str = "valid"
    table_epochs: int | None = None
    identity: str = "cell"
    training: int | None = None
    latency: pathlib.Path | None = None
    cost: str | None = None
    at_most: float | None = None
    percentile: float | None = None
    target: float | None = None
    supernet: pathlib.Path | None = None
    eval_images: int = 512
    start: pathlib.Path | None = None
    initial: int | None = None
    batch: int | None = None
    population: int | None = None
    tournament: int | None = None
    truth: int | None = None
    rounds: int | None = None
    entropy: float | None = None
    reset_discriminator: bool | None = None
    rank: bool | None = None
    report_every: int | None = None
    out: pathlib.Path | None = None
    resume: bool = False

    def fields(self) -> dict[str, Any]:
        """All fields as JSON values."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in fields.items()}

    def options(self) -> dict[str, Any]:
        """What the algorithm is made with, by name: what is given, and its defaults.

        Raises:
          UsageError: the algorithm is unknown, or does not have an option that is given.
        """
        if self.algorithm not in ALGORITHMS:
            raise UsageError("algorithm", f"{self.algorithm!r} is unknown; known are {', '.join(ALGORITHMS)}")
        taken = inspect.signature(ALGORITHMS[self.algorithm]).parameters
        given = {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None}
        for name in given:
            if name not in taken:
                raise UsageError(name, f"is not an option of {self.algorithm}")
        return {name: parameter.default for name, parameter in taken.items()} | given

    def identify(self) -> dict[str, Any]:
        """The fields and files that decide the numbers of a run, by flag; a resumed run must have the same.

        Raises:
          UsageError: a file cannot be read, or the algorithm is unknown.
        """
        free = ("report_every", "out", "resume")
        options = {name: value for name, value in self.options().items() if name in OPTIONS}
        fields = {name: value for name, value in (self.fields() | options).items() if name not in free}
        supernet = self.supernet and self.supernet / "metrics.jsonl"
        for name, path in (
            ("table", self.table),
            ("latency", self.latency),
            ("start", self.start),
            ("supernet", supernet),
        ):
            if path is None:
                continue
            try:
                fields[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            except OSError as error:
                raise UsageError(name, f"cannot read {path} ({error.strerror})") from error
        return {f"--{name.replace('_', '-')}": value for name, value in fields.items()}


OPTIONS = ("initial", "batch", "population", "tournament", "truth", "rounds", "entropy", "reset_discriminator", "rank")
"""The fields of a configuration that are an algorithm's own."""


class BlackboxResult(NamedTuple):
    """What the trials of an experiment evaluated.

    Attributes:
      config: its configuration.
      benchmark: what it searched.
      ids: int [trials, budget], the candidates in the order of their evaluation.
      scores: float32 [trials, budget], what the search saw of them, which the table has only without a supernet.
      rounds: int [trials], rounds of proposals.
      records: the reports.
      wall_s: seconds it took, summed over resumes.
    """

    config: BlackboxConfig
    benchmark: Benchmark
    ids: np.ndarray
    scores: np.ndarray
    rounds: np.ndarray
    records: list[Record]
    wall_s: float


@flax.struct.dataclass
class _Trials:
    """States of trials, of which every array has a first axis for them."""

    trials: Trial

    @property
    def step(self) -> jax.Array:
        return self.trials.step[0]


def make_algorithm(config: BlackboxConfig) -> Algorithm:
    """The algorithm of a configuration.

    Args:
      config: the configuration.

    Returns:
      The algorithm.

    Raises:
      UsageError: it is unknown, or does not have an option that is given.
    """
    options = config.options()
    return ALGORITHMS[config.algorithm](**options)


def make_benchmark(config: BlackboxConfig) -> Benchmark:
    """The benchmark of a configuration, with its constraint.

    Args:
      config: the configuration.

    Returns:
      The benchmark.

    Raises:
      UsageError: a field is wrong.
    """
    if config.table is None:
        raise UsageError("table", "is needed: the file of the benchmark")
    signal = Signal(config.dataset, config.metric, config.table_epochs, config.identity, config.training)
    try:
        benchmark = load_benchmark(config.space, config.table, signal, config.latency)
    except UsageError as error:
        if error.argument == "epochs":
            raise UsageError("table_epochs", error.sentence) from error
        raise
    given = [name for name in ("at_most", "percentile", "target") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UsageError(given[1], f"cannot be given together with {given[0].replace('_', ' ')}")
    if bool(given) != (config.cost is not None):
        raise UsageError("cost", "is needed with a limit or a target, and one of these with it")
    if config.cost is None:
        return benchmark
    if config.target is not None:
        return benchmark.weighed(config.cost, config.target)
    if config.percentile is None:
        assert config.at_most is not None
        return benchmark.limited(config.cost, config.at_most)
    if not 0 <= config.percentile <= 100:
        raise UsageError("percentile", f"must be 0 to 100, not {config.percentile:g}")
    return benchmark.limited(config.cost, float(np.percentile(benchmark.cost(config.cost), config.percentile)))


def blackbox(
    config: BlackboxConfig,
    on_report: Callable[[Record], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> BlackboxResult:
    """Runs trials of an algorithm on a benchmark, as one compiled program.

    A trial depends on the seed and on its number, and not on how many there are or on the devices.

    Args:
      config: what, how and where.
      on_report: called with every report: ``step``, ``wall_s``, and means over the trials of ``queries`` so far, of the
        ``best`` score, of its ``rank`` among all feasible candidates, of ``rounds`` of proposals, and of what the
        algorithm measures.
      devices: the trials are spread over as many of these as divide their number; all local ones by default.

    Returns:
      The `BlackboxResult`; with ``config.out`` also its folder, with ``archives.npz`` (``ids`` and ``scores``).

    Raises:
      UsageError: an argument is wrong; nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
    """
    for name in ("budget", "trials", "eval_images", "initial", "batch", "population", "rounds", "report_every"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UsageError(name, f"must be more than 0, not {value}")
    if not 0 <= config.seed < 2**32:
        raise UsageError("seed", f"must be 0 to 2^32 - 1, not {config.seed}")
    if config.target is not None and config.supernet is not None:
        raise UsageError("target", "weighs the scores of the table, which a supernet replaces; limit the cost instead")
    algorithm = make_algorithm(config)
    benchmark = make_benchmark(config)
    candidates = benchmark.candidates
    if algorithm.needs_neighbours and candidates.neighbours is None:
        raise UsageError(
            "algorithm",
            f"{config.algorithm} moves between neighbours, which this benchmark has not",
        )
    identities = int(candidates.identity.max()) + 1
    there = len(np.unique(np.asarray(candidates.identity)[np.asarray(candidates.feasible)]))
    if not algorithm.initial <= config.budget <= there - algorithm.batch:
        least, most = algorithm.initial, there - algorithm.batch
        raise UsageError("budget", f"must be {least} (the initial candidates) to {most:,}, not {config.budget}")
    if config.resume and config.out is None:
        raise UsageError("resume", "needs the folder of the run to continue, --out")
    start = _start(config, benchmark, algorithm.initial)
    evaluate = from_table(benchmark)
    if config.supernet is not None:
        evaluate = from_supernet(benchmark, config.supernet, config.eval_images)
    folder = None
    if config.out is not None and config.resume:
        folder = RunFolder.reopen(config.out, config.identify())
    elif config.out is not None:
        folder = RunFolder.create(config.out, config.fields(), config.identify())
    ranks = benchmark.ranks()

    def create(given: tuple[jax.Array, tuple[Candidates, Evaluate]]) -> _Trials:
        keys, (candidates, evaluate) = given

        def one(key: jax.Array) -> Trial:
            return begin(algorithm, candidates, evaluate, config.budget, identities, key, start)

        return _Trials(jax.lax.map(one, keys))

    def step(state: _Trials, batch: tuple[Candidates, Evaluate]) -> tuple[_Trials, dict[str, jax.Array]]:
        candidates, evaluate = batch

        def one(trial: Trial) -> tuple[Trial, dict[str, jax.Array]]:
            trial = advance(algorithm, candidates, evaluate, trial, _QUERIES)
            return trial, {"rounds": trial.rounds.astype(jnp.float32), **algorithm.measures(trial.state)}

        trials, measures = jax.lax.map(one, state.trials)
        return _Trials(trials), measures

    def report(state: _Trials, means: Record, before: Record | None) -> tuple[Record, str]:
        archive = jax.device_get(state.trials.archive)
        best = np.take_along_axis(archive.ids, archive.scores.argmax(axis=1)[:, None], axis=1)[:, 0]
        record = {
            "queries": float(archive.queries.mean()),
            "best": float(archive.scores.max(axis=1).mean()),
            "rank": float(ranks[best].mean()),
            **{name: float(np.mean(values)) for name, values in means.items()},
            "rounds": float(np.mean(state.trials.rounds)),
        }
        return record, f"{record['queries']:.0f} queries  best {record['best']:.2f}  rank {record['rank']:.1f}"

    devices = devices if devices is not None else jax.local_devices()
    devices = devices[: max(count for count in range(1, len(devices) + 1) if config.trials % count == 0)]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), jnp.arange(config.trials))
    data = (candidates, evaluate)
    every = config.report_every or math.ceil(config.budget / 10)
    finished = drive(
        step,
        create,
        (keys, data),
        jax.tree_util.Partial(_same, data),
        max(1, math.ceil((config.budget - algorithm.initial) / _QUERIES)),
        report=report,
        report_every=math.ceil(every / _QUERIES),
        description=config.algorithm,
        folder=folder,
        resume=config.resume,
        devices=devices,
        parallel=_spread,
        on_report=on_report,
    )
    trials = jax.device_get(finished.state.trials)
    archive = trials.archive
    if folder:
        temporary = folder.path / "archives.tmp.npz"
        np.savez_compressed(temporary, ids=archive.ids, scores=archive.scores)
        os.replace(temporary, folder.path / "archives.npz")
    return BlackboxResult(
        config, benchmark, archive.ids, archive.scores, trials.rounds, finished.records, finished.wall_s
    )


def _start(config: BlackboxConfig, benchmark: Benchmark, initial: int) -> list[int]:
    """The candidates that every trial begins with."""
    if config.start is None:
        return []
    try:
        lines = [line for line in config.start.read_text().splitlines() if line.strip()]
        ids = [benchmark.row(line) for line in lines]
    except OSError as error:
        raise UsageError("start", f"cannot read {config.start} ({error.strerror})") from error
    except ValueError as error:  # a UsageError too
        raise UsageError("start", f"{config.start}: {error}") from error
    candidates = benchmark.candidates
    identities = np.asarray(candidates.identity)[ids]
    if len(set(identities.tolist())) < len(ids) or not np.asarray(candidates.feasible)[ids].all():
        raise UsageError("start", f"{config.start} wants feasible cells, no two of which count as one")
    if not 0 < len(ids) <= initial:
        raise UsageError("start", f"{config.start} has {len(ids)} cells; wants 1 to {initial}, the initial candidates")
    return ids


def _same(data: Any, step: Any) -> Any:
    return data


def _spread(step: Step, devices: Sequence[jax.Device]) -> tuple[Step, NamedSharding]:
    """Spreads trials over devices; what they search is on each of them."""
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = PartitionSpec(_AXIS), PartitionSpec()
    spread = jax.shard_map(step, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)
    return jax.jit(spread), NamedSharding(mesh, split)
