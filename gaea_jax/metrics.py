"""The record of a run: one JSON line a report in ``metrics.jsonl``, the same for TensorBoard if it is wanted, and
progress shown on standard error.
"""

import json
import math
import os
import pathlib
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from gaea_jax.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

# Bars of a histogram; TensorBoard shows as many.
BARS = 30

# Reports over which the rate is averaged: enough to be steady, few enough to follow a change of speed.
RATE_WINDOW = 8


class MetricsLog:
    """A file of reports, one JSON object a line, that survives a killed run.

    The file is opened for each report and closed again, so every report that :meth:`append` returned from is
    there after a ``kill -9``. A kill inside a write leaves a torn last line, and a kill after a report but
    before the next checkpoint leaves lines that the resumed run will write again: a run that resumes calls
    :meth:`rewind` before it appends.

    Example:
      >>> import tempfile
      >>> log = MetricsLog(pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl")
      >>> for step in (100, 200, 300):
      ...     log.append({"step": step, "loss": 1.0 / step})
      >>> log.rewind(200)
      >>> [record["step"] for record in read_metrics(log.path)]
      [100, 200]
    """

    def __init__(self, path: str | os.PathLike[str], tensorboard: str | os.PathLike[str] | None = None):
        """Names the file; its folder must exist when the first report is appended.

        Args:
          path: the file, by convention ``metrics.jsonl`` in the folder of the run.
          tensorboard: folder that gets the same reports as event files (see `EventLog`); None for none.

        Raises:
          UsageError: on ``tensorboard``, if the package that writes them is missing.
        """
        self.path = pathlib.Path(path)
        self._events = EventLog(tensorboard) if tensorboard is not None else None

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one report.

        Args:
          record: names to JSON values, NumPy or JAX scalars or arrays (written as nested lists), or mappings
            and sequences of these. ``step``, a whole number, must be among the names.

        Raises:
          ValueError: a number is infinite or not a number, which JSON cannot hold, or ``step`` is not a whole
            number. Nothing is written.
          TypeError: a value is none of the above. Nothing is written.
        """
        plain = _plain(record)
        with open(self.path, "a", encoding="ascii") as file:
            file.write(_line(plain))
        if self._events:
            self._events.append(plain)

    def rewind(self, step: int) -> None:
        """Drops what was reported after a step, and a torn last line, in one atomic replacement of the file.

        Event files for TensorBoard begin anew with the reports that stay.

        Args:
          step: the number of completed steps in the checkpoint that the run resumes from. Reports with at
            most this step stay. A file that does not exist stays absent.

        Raises:
          UsageError: a line other than a torn last one is broken; the file is left as it was.
        """
        if not self.path.exists():
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(map(_line, kept)), encoding="ascii")
        os.replace(temporary, self.path)
        if self._events:
            self._events.restart(kept)

    def records(self) -> list[dict[str, Any]]:
        """The reports written so far, see `read_metrics`; none before the first."""
        return read_metrics(self.path) if self.path.exists() else []


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the reports of a run, in the order they were written.

    Args:
      path: a file written by :class:`MetricsLog`. A last line that a kill cut short is left out.

    Returns:
      One dictionary a report, with Python numbers, strings, lists and dictionaries as values.

    Raises:
      UsageError: the file does not exist, or one of its other lines is not a JSON object with a ``step``.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UsageError("run", f"{path} does not exist; expected the metrics.jsonl of a run folder")
    *lines, tail = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is None:
            raise UsageError("run", f"{path}, line {number} is not a JSON object with a whole-number step")
        records.append(record)
    # No proper prefix of a JSON object is one, so a tail that parses only lacks its line end.
    last = _parse(tail)
    return records if last is None else [*records, last]


class EventLog:
    """The reports of a run as event files, which TensorBoard shows: ``tensorboard --logdir FOLDER``.

    A number becomes a scalar, a text such as the genotype a text, and a table of numbers such as a mixture a histogram:
    a scalar for each option on each edge would bury the others. Tags are the names of a report, joined as in
    ``table/cifar10/rank``. An event has the time of the run (``wall_s``), without the pauses before a resume.

    Every report that :meth:`append` returned from is in the file after a ``kill -9``.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Names the folder, and writes nothing yet.

        Args:
          folder: by convention ``tensorboard`` in the folder of the run; made with the first report.

        Raises:
          UsageError: on ``tensorboard``, if the package tensorboardX is missing.
        """
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise UsageError("tensorboard", "needs the package tensorboardX: pip install tensorboardX") from error
        self._folder = pathlib.Path(folder)
        self._writer: Any = None
        self._begin = time.time()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one report.

        Args:
          record: names to JSON values, ``step`` among them.
        """
        if self._writer is None:
            self.restart([])
        self._write(record)
        self._writer.flush()

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Begins a new event file that replaces all older ones of the folder.

        It starts a new session at step 0, for which TensorBoard drops what it has read of the run so far. So no step is
        shown twice, and none is missing, even if the run had no event files before.

        Args:
          records: the reports to begin with.
        """
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._writer = RecordWriter(str(self._folder / f"events.out.tfevents.{time.time_ns()}"))
        weakref.finalize(self, self._writer.close)
        if records:
            self._begin = time.time() - records[-1].get("wall_s", 0.0)
        start = SessionLog(status=SessionLog.START)
        for event in (Event(file_version="brain.Event:2"), Event(step=0, session_log=start)):
            event.wall_time = self._begin
            self._writer.write(event.SerializeToString())
        for record in records:
            self._write(record)
        self._writer.flush()

    def _write(self, record: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        when = self._begin + record["wall_s"] if "wall_s" in record else time.time()
        for name, value in record.items():
            for summary in _summaries(name, value) if name != "step" else ():
                event = Event(wall_time=when, step=record["step"], summary=summary)
                self._writer.write(event.SerializeToString())


class Progress:
    """Where a run stands, how fast it goes and how long it still takes; made by :func:`progress`."""

    def __init__(self, total: int, start: int, show: Callable[[int, str, str], None]):
        """Starts the clock.

        Args:
          total: the step at which the run ends.
          start: the step at which it begins, above zero for a run that resumes.
          show: called with (step, rate and time left, text) at every update.
        """
        self._total = total
        self._start = start
        self._show = show
        self._marks = deque([(time.monotonic(), start)], maxlen=RATE_WINDOW)

    def update(self, step: int, text: str) -> None:
        """Shows one report.

        Args:
          step: the number of completed steps.
          text: a short summary, such as ``loss 1.63  acc 41.2 %``.
        """
        self._marks.append((time.monotonic(), step))
        (then, before), (now, _) = self._marks[0], self._marks[-1]
        self._show(step, _pace(step - before, now - then, self._total - step), text)
        # Compilation falls between the start and the first report: later rates count from that report on.
        if before == self._start and len(self._marks) == 2:
            self._marks.popleft()


@contextmanager
def progress(total: int, start: int = 0, description: str = "") -> Iterator[Progress]:
    """Shows the progress of a run on standard error.

    On a terminal, and with rich installed, a bar stays below the reports; anywhere else (a log of continuous
    integration, a notebook, a pipe) every report is one plain line.

    Args:
      total: the step at which the run ends.
      start: the step at which it begins, above zero for a run that resumes.
      description: what is running, such as ``search``.

    Yields:
      A :class:`Progress`; call its ``update`` at every report.

    Example:
      >>> with progress(total=782, description="search") as shown:
      ...     shown.update(300, "loss 1.63  acc 41.2 %")
    """
    console = _terminal()
    if console is None:
        yield Progress(total, start, _print_lines(total, description))
        return

    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, expand=True) as bar:
        task = bar.add_task(description, total=total, completed=start, pace="")

        def show(step: int, pace: str, text: str) -> None:
            console.print(f"{step:>{len(str(total))}}  {text}", markup=False, highlight=False)
            bar.update(task, completed=step, pace=pace)

        yield Progress(total, start, show)


def _print_lines(total: int, description: str) -> Callable[[int, str, str], None]:
    def show(step: int, pace: str, text: str) -> None:
        position = f"{step:>{len(str(total))}}/{total}"
        print(
            "  ".join(part for part in (description, position, pace, text) if part),
            file=sys.stderr,
            flush=True,
        )

    return show


def _terminal() -> "Console | None":
    """A rich console on standard error, or None where rich is absent or that is no full terminal."""
    # Not left to rich alone: under FORCE_COLOR it takes any log for a terminal and would fill it with bars.
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    return console if console.is_interactive else None


def _pace(steps: int, seconds: float, remaining: int) -> str:
    """Rate and time left, or nothing while no step has been seen to pass."""
    if steps <= 0 or seconds <= 0:
        return ""
    rate = steps / seconds
    left = timedelta(seconds=round(max(remaining, 0) / rate))
    return f"{rate:,.0f} steps/s  {left} left" if rate >= 100 else f"{rate:.3g} steps/s  {left} left"


def _summaries(tag: str, value: Any) -> Iterator[Any]:
    """What TensorBoard shows of a value in a report: nothing of one that is absent or empty."""
    from tensorboardX import summary

    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _summaries(f"{tag}/{name}", item)
    elif isinstance(value, int | float):
        yield summary.scalar(tag, value)
    elif isinstance(value, str):
        # TensorBoard takes a text for Markdown, and a genotype for a table, unless it is code.
        yield summary.text(tag, f"`{value}`")
    elif isinstance(value, list):
        numbers = np.array(list(_flat(value)))
        if numbers.size and numbers.dtype.kind in "bif":
            yield summary.histogram(tag, numbers, BARS)
        elif value:
            yield summary.text(tag, f"`{json.dumps(value)}`")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain) + "\n"


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = _json_value(record, "record")
    if not _has_step(plain):
        raise ValueError(f"record: step must be a whole number, got {plain.get('step')!r}")
    return plain


def _json_value(value: Any, name: str) -> Any:
    """The value as JSON data; `name` is the path to it, for the error."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _json_value(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; a report holds finite numbers only")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a report cannot hold")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and _has_step(record) else None


def _has_step(record: Mapping[str, Any]) -> bool:
    step = record.get("step")
    return isinstance(step, int) and not isinstance(step, bool)
