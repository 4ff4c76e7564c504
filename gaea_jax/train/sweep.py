"""Searches that differ in seeds and learning rates as one program: compiled once, and spread over devices."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gaea_jax.errors import UsageError
from gaea_jax.train.config import open_folder
from gaea_jax.train.drive import Record, Run, drive
from gaea_jax.train.folder import Log, RunFolder
from gaea_jax.train.loop import Step
from gaea_jax.train.prepare import prepare
from gaea_jax.train.search import SearchResult, result_of, write_result
from gaea_jax.train.search_config import SearchConfig, arch_learning_rate, checked
from gaea_jax.train.state import at_rates

# What the searches of a sweep may differ in.
SWEPT = ("seed", "learning_rate", "arch_learning_rate")
_AXIS = "run"


@flax.struct.dataclass
class Runs:
    """The states of several runs that are at the same step.

    Attributes:
      states: a state of which every array has a first axis for the runs.
    """

    states: Any

    @property
    def step(self) -> jax.Array:
        """Number of steps that each of them has completed."""
        return self.states.step[0]

    def split(self) -> list[Any]:
        """The states of single runs."""
        return [jax.tree.map(lambda leaf, run=run: leaf[run], self.states) for run in range(len(self.states.step))]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """The batches of several runs; what their sources have in common, such as the images, is held once.

    Attributes:
      shared: the leaves of a source, None where those of the runs differ.
      own: for each run, stacked, the leaves that are None there, and None for the others.
      form: the structure of a source.
    """

    shared: list[jax.Array | None]
    own: list[jax.Array | None]
    form: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, sources: Sequence[Any]) -> Self:
        """Joins the sources of single runs, which are pytrees; leaves that are the same object are held in common."""
        columns = list(zip(*map(jax.tree.leaves, sources), strict=True))
        same = [all(leaf is column[0] for leaf in column) for column in columns]
        return cls(
            [column[0] if once else None for column, once in zip(columns, same, strict=True)],
            [None if once else jnp.stack(column) for column, once in zip(columns, same, strict=True)],
            jax.tree.structure(sources[0]),
        )

    @jax.jit
    def __call__(self, step: int | jax.Array) -> Any:
        """The batches of a step, of which every array has a first axis for the runs."""

        def one(own: list[jax.Array | None]) -> Any:
            leaves = [mine if mine is not None else ours for mine, ours in zip(own, self.shared, strict=True)]
            return jax.tree.unflatten(self.form, leaves)(step)

        return jax.lax.map(one, self.own)


def run_parallel(step: Step, devices: Sequence[jax.Device]) -> tuple[Step, NamedSharding]:
    """Spreads runs over devices; each device makes the steps of its own, one after another.

    Args:
      step: ``step(state, batch) -> (state, metrics)`` of a single run.
      devices: the devices; their number divides that of the runs.

    Returns:
      The step of `Runs` and stacked batches, whose metrics have an axis for the runs; and the sharding of the state.
    """
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    spec = PartitionSpec(_AXIS)

    def each(runs: Runs, batches: Any) -> tuple[Runs, dict[str, jax.Array]]:
        states, metrics = jax.lax.map(lambda run: step(*run), (runs.states, batches))
        return Runs(states), metrics

    spread = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(spread), NamedSharding(mesh, spec)


class RunLogs:
    """The reports of several runs, a file of each: a report has those of the runs as a list, ``runs``."""

    def __init__(self, logs: Sequence[Log]):
        self._logs = logs

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one report."""
        for log, own in zip(self._logs, record["runs"], strict=True):
            log.append({"step": record["step"], **own, "wall_s": record["wall_s"]})

    def rewind(self, step: int) -> None:
        """Drops what was reported after a step."""
        for log in self._logs:
            log.rewind(step)

    def records(self) -> list[Record]:
        """The reports written so far, as they were appended."""
        rows = zip(*(log.records() for log in self._logs), strict=True)
        return [{"step": row[0]["step"], "runs": list(row), "wall_s": row[0]["wall_s"]} for row in rows]


def sweep(
    configs: Sequence[SearchConfig],
    on_report: Callable[[Record], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> list[SearchResult]:
    """Searches several times at once, with other seeds or learning rates, see `search`.

    As many devices are used as divide the number of searches; each stays on its device and makes the steps that it
    makes alone.

    Args:
      configs: what, how and where; no two are equal, and they differ in `SWEPT` alone. ``out`` gets the checkpoints of
        all, and in it a folder for each with all else that a search writes: ``seed-N``, with the learning rates in its
        name where those differ.
      on_report: called with every report: ``step``, ``wall_s``, and those of the searches as a list, ``runs``.
      devices: all local ones by default.

    Returns:
      The results, in the order of the configurations; their ``wall_s`` is that of all together.

    Raises:
      UsageError: an argument is wrong, or the images are streamed (on ``stream``); nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
      DivergedError: loss or gradient of one of them is not finite.
      ValueError: there are no configurations, or two are equal.
    """
    config = _in_common(configs)
    if jax.process_count() > 1:
        raise UsageError("seeds", "cannot be given to several processes; a sweep runs on the devices of one")
    devices = devices if devices is not None else jax.local_devices()
    devices = devices[: max(count for count in range(1, len(devices) + 1) if len(configs) % count == 0)]
    configs = [checked(one, 1) for one in configs]
    # Reports evaluate one search after another, on the first device.
    ready = prepare(config, devices[:1])
    names = _names(configs)
    folder = open_folder(ready.config, {**ready.digests, "--sweep": ", ".join(names)})
    own = [] if folder is None else _own_folders(folder, dict(zip(names, configs, strict=True)))

    def report(state: Runs, means: Record, before: Record | None) -> tuple[Record, str]:
        records = []
        for number, one in enumerate(jax.device_put(state, devices[0]).split()):
            own_means = {name: values[number] for name, values in means.items()}
            record, _ = ready.report(one, own_means, before and before["runs"][number])
            records.append(record)
        loss, accuracy = (statistics.fmean(means[name]) for name in ("loss", "accuracy"))
        return {"runs": records}, f"{len(configs)} runs, mean loss {loss:.3f}  acc {accuracy:.1f} %"

    keys = [jax.random.key(one.seed) for one in configs]
    rates = [_rates(one) for one in configs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(keys, rates, strict=True))

    def create(each: tuple[jax.Array, dict[str, jax.Array]]) -> Runs:
        return Runs(jax.lax.map(lambda one: at_rates(ready.create(one[0]), one[1]), each))

    finished = drive(
        ready.step,
        create,
        stacked,
        Sources.of([ready.source(ready.images, key) for key in keys]),
        ready.length.until,
        report=report,
        report_every=ready.length.report_every,
        description="search",
        folder=folder,
        resume=config.resume,
        loop=config.loop,
        devices=devices,
        parallel=run_parallel,
        on_report=on_report,
    )
    results = []
    for number, (one, state) in enumerate(zip(configs, finished.state.split(), strict=True)):
        records = [
            {"step": record["step"], **record["runs"][number], "wall_s": record["wall_s"]}
            for record in finished.records
        ]
        results.append(result_of(ready, one, Run(state, records, finished.wall_s)))
        if own:
            write_result(results[-1], ready.space, own[number])
    return results


def _in_common(configs: Sequence[SearchConfig]) -> SearchConfig:
    """The first configuration, after a check that the others are of the same sweep."""
    if not configs or any(one in configs[:number] for number, one in enumerate(configs)):
        raise ValueError("a sweep needs configurations, no two of them equal")
    first = configs[0]
    for one in configs:
        for name, value in vars(one).items():
            if name not in SWEPT and value != getattr(first, name):
                raise UsageError(name, f"is one for a whole sweep, not both {getattr(first, name)} and {value}")
    if first.stream:
        raise UsageError("stream", "is for one search at a time; several share the images in memory")
    return first


def _names(configs: Sequence[SearchConfig]) -> list[str]:
    """A name for each: its seed, and of its learning rates those that are not the same for all."""
    swept = [name for name in SWEPT if name == "seed" or len({getattr(one, name) for one in configs}) > 1]
    return ["-".join(f"{name.replace('_', '-')}-{getattr(one, name)}" for name in swept) for one in configs]


def _rates(config: SearchConfig) -> dict[str, jax.Array]:
    """Its learning rates, as `at_rates` takes them."""
    rates = {"learning_rate": config.learning_rate, "arch_learning_rate": arch_learning_rate(config)}
    return {name: jnp.float32(rate) for name, rate in rates.items() if rate is not None}


def _own_folders(folder: RunFolder, configs: Mapping[str, SearchConfig]) -> list[RunFolder]:
    """The folder of each search in that of all, which from now on writes its reports there."""
    own = []
    for name, config in configs.items():
        path = folder.path / name
        path.mkdir(exist_ok=True)
        own.append(RunFolder(path, config.identity(), config.tensorboard))
        fields = {**config.fields(), "out": str(path), "identity": config.identity()}
        own[-1].write_json("config.json", fields)
    folder.log = RunLogs([one.log for one in own])
    return own
