"""A whole search from one configuration: what the script calls, and notebooks too."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax

from gaea_jax import processes
from gaea_jax.checkpoint import CheckpointError
from gaea_jax.methods.base import Space
from gaea_jax.train.config import open_folder
from gaea_jax.train.drive import Record, Run, drive, restored
from gaea_jax.train.folder import RunFolder
from gaea_jax.train.prepare import Ready, prepare
from gaea_jax.train.search_config import SearchConfig
from gaea_jax.train.state import SearchState
from gaea_jax.versions import versions


class Derived(NamedTuple):
    """A cell that was derived at a report.

    Attributes:
      genotype: the cell.
      step: number of steps made then.
      valid_accuracy: percent of held-out images right then (see `search`); None without such images.
      table: what the tabular benchmark says of the cell (see `Truth.summary`); None without a table.
    """

    genotype: Any
    step: int
    valid_accuracy: float | None
    table: dict[str, Any] | None

    @classmethod
    def of(cls, record: Record, space: Space) -> Self:
        """What a report says of its cell."""
        genotype = space.parse(record["genotype"])
        return cls(genotype, record["step"], record.get("valid_accuracy"), record.get("table"))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self._asdict(), "genotype": str(self.genotype)}


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      config: the configuration.
      steps: number of steps made.
      last: the cell of the last report.
      best_valid: the cell of the first report with the highest ``valid_accuracy``; None without held-out images.
      records: every report.
      state: the last `SearchState`.
      wall_s: seconds, summed over resumes.
    """

    config: SearchConfig
    steps: int
    last: Derived
    best_valid: Derived | None
    records: list[Record]
    state: SearchState
    wall_s: float

    @property
    def derived(self) -> Derived:
        """The one of the two that ``config.derive_from`` names."""
        return self.best_valid if self.best_valid and self.config.derive_from == "best_valid" else self.last

    @property
    def genotype(self) -> Any:
        """The derived cell."""
        return self.derived.genotype

    @property
    def table(self) -> dict[str, Any] | None:
        """What the tabular benchmark says of the derived cell; None without a table."""
        return self.derived.table

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "space": self.config.space,
            "method": self.config.method,
            "objective": self.config.objective,
            "order": self.config.order,
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "steps": self.steps,
            "genotype": str(self.genotype),
            "derived_from": {"rule": self.config.derive_from, "step": self.derived.step},
            "table": self.table,
            "last": self.last.to_json(),
            "best_valid": self.best_valid.to_json() if self.best_valid else None,
            "wall_s": round(self.wall_s, 3),
            "versions": versions(),
        }


def search(
    config: SearchConfig,
    on_report: Callable[[Record], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> SearchResult:
    """Searches a space by gradient and derives a genotype.

    Args:
      config: what, how and where.
      on_report: called with every report, which is also a line of ``metrics.jsonl``: ``step``, ``epoch``, means since
        the last report of ``loss`` (nats), ``accuracy`` (percent) and ``gradient_norm``, and of ``changed_edges`` if
        the method has a memory (see `make_search_step`), what the method measures itself by (EnTranNAS-DST:
        ``connections`` and ``thresholds`` of each node of a cell, and ``equivalence_gap``, by how much a weight of the
        engine cells differs at most from 1), ``agreement`` (of the connections of this derived cell and the last
        report's the share that both have, 0 to 1),
        ``entropy`` (mean over the simplices of each choice, nats), ``skip_share`` (of the derived operations, 0 to 1),
        ``mixture`` (weights of each choice, a flat list where its simplices differ in length), ``genotype``,
        ``wall_s``; with a bilevel objective ``valid_accuracy``, the percent of `eval_images` held-out images that the
        supernet classifies right under the method's mixture, or under the genotype if the method learns no mixture, and
        ``derived_accuracy``, that under the genotype with the weights as they are, so that the difference is what the
        discretisation costs; with both of BatchNorm's statistics also ``valid_accuracy_running`` and
        ``derived_accuracy_running``; and with a table ``table`` (`Table.summary`).
      devices: spread each batch over these; all by default, those of other processes too.

    Returns:
      The `SearchResult`; with ``config.out`` also its folder, with ``result.json`` and plots.

    Raises:
      UsageError: an argument is wrong; nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
      DivergedError: loss or gradient is not finite.
      LostProcessError: another process of the run ended.
    """
    devices = devices if devices is not None else jax.devices()
    ready = prepare(config, devices)
    folder = open_folder(ready.config, ready.digests)
    key = jax.random.key(config.seed)
    finished = drive(
        ready.step,
        ready.create,
        key,
        ready.source(ready.images, key),
        ready.length.until,
        report=ready.report,
        report_every=ready.length.report_every,
        description="search",
        folder=folder,
        resume=config.resume,
        loop=config.loop,
        devices=devices,
        on_report=on_report,
    )
    result = result_of(ready, ready.config, finished)
    if folder and processes.is_first():
        write_result(result, ready.space, folder)
    return result


def restore_search(path: str | os.PathLike[str]) -> tuple[Ready, SearchState]:
    """A search that was written, and its last state.

    Args:
      path: its folder; the search has ended, for what a save has left unfinished is removed.

    Returns:
      The search, prepared on one device, and the state.

    Raises:
      UsageError: on ``resume``, if the folder holds no search with a checkpoint, or one whose data is not the same or
        was streamed; on whatever of its configuration does not hold any more.
    """
    path = pathlib.Path(path)
    try:
        fields = json.loads((path / "config.json").read_text())
        paths = {name: fields[name] and pathlib.Path(fields[name]) for name in ("data_dir", "split")}
        known = {field.name: fields[field.name] for field in dataclasses.fields(SearchConfig)}
        config = SearchConfig(**{**known, **paths, "table": None, "out": path, "resume": True})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"there is no search in {path}") from error
    if config.stream:
        raise CheckpointError(f"the search in {path} was streamed; its state can only go on")
    ready = prepare(config, jax.local_devices()[:1])
    folder = open_folder(ready.config, ready.digests)
    assert folder is not None
    key = jax.random.key(config.seed)
    return ready, restored(ready.step, ready.create, key, ready.source(ready.images, key), folder)


def result_of(ready: Ready, config: SearchConfig, finished: Run) -> SearchResult:
    """What a finished run found.

    Args:
      ready: the search, as it was prepared.
      config: its configuration, or one that differs from it in what a sweep does.
      finished: the run.

    Returns:
      The result.
    """
    records = finished.records
    last = Derived.of(records[-1], ready.space)
    best_valid = None
    if "valid_accuracy" in records[-1]:
        best_valid = Derived.of(max(records, key=lambda record: record["valid_accuracy"]), ready.space)
    return SearchResult(config, ready.length.until, last, best_valid, records, finished.state, finished.wall_s)


def write_result(result: SearchResult, space: Space, folder: RunFolder) -> None:
    """Writes ``result.json`` and the plots of a search.

    Args:
      result: what it found.
      space: its space.
      folder: the folder of its run.
    """
    from gaea_jax import plot

    plot.search_plots(result.records, space.choices, space.graphs(result.genotype), folder.path / "plots")
    folder.write_json("result.json", result.to_json())
