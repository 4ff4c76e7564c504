"""Kills a small search again and again, and compares what its resumed runs end with to an unbroken run, bit for bit.

The search (digits, 4 channels, 1 cell a stage, batches of 16) runs once unbroken. Then the same search is started in
new folders and ended by SIGKILL at a random moment, counted from its start or from one of its reports, each of which
is followed by the save of a checkpoint. It is resumed, perhaps killed again, and at last allowed to finish. Equal
means: the SHA-256 digest of every leaf of the last state, all reports but for their times, and the genotype.

The unbroken run compiles its programs, all later processes load them from a cache on disk: that they end alike says
as well that a loaded program does what the compiled one does.

Takes about eight minutes on two CPU cores with the defaults, most of it for starting processes.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from gaea_jax.errors import UsageError
from gaea_jax.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("start-up", "stepping", "saving")
POLL_S = 0.001


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to kill, and what."""

    kills: int = 50
    """How many kills there are to be."""
    again: float = 0.4
    """Probability that a resumed run is killed again."""
    steps: int = 60
    """Steps of the search."""
    report_every: int = 10
    """Steps between two reports, each followed by a checkpoint."""
    seed: int = 0
    """Seed of the moments."""


class Pace(NamedTuple):
    """How fast the search goes.

    Attributes:
      process_s: seconds from the start of a process to its end.
      report_s: seconds between two reports.
      steps: the steps of all reports.
    """

    process_s: float
    report_s: float
    steps: list[int]


class Moment(NamedTuple):
    """When to kill a process.

    Attributes:
      step: the process itself must have reported this step; 0 for its start.
      seconds: to wait from there.
    """

    step: int
    seconds: float


def run(config: Config) -> dict[str, Any]:
    """Kills, resumes and compares.

    Args:
      config: how often, and what.

    Returns:
      ``config``; ``runs`` and how many of them were ``equal``; ``unequal``, what differed in the others; ``kills``,
      each with its ``run``, ``seconds`` since the start of the process, newest complete ``checkpoint`` (null before
      the first) and ``phase``: "start-up" until the process has reported, "saving" while the checkpoint of the last
      report is not complete, else "stepping"; their number by phase, ``phases``, and ``before_first_checkpoint``; and
      ``conclusion``, one line.

    Raises:
      UsageError: a number below 1, or a probability of 1 or more, with which no run would end.
      RuntimeError: the unbroken run failed, or is not the same again.
    """
    for name in ("kills", "steps", "report_every"):
        if getattr(config, name) < 1:
            raise UsageError(name, f"must be more than 0, not {getattr(config, name)}")
    if not 0 <= config.again < 1:
        raise UsageError("again", f"must be at least 0 and less than 1, not {config.again}")
    rng = np.random.default_rng(config.seed)
    kills: list[dict[str, Any]] = []
    unequal: list[str] = []
    runs = equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        unbroken, _ = _unbroken(config, Path(temporary, "compiled"))
        loaded, pace = _unbroken(config, Path(temporary, "loaded"))
        if different := differences(loaded, unbroken):
            raise RuntimeError(f"two unbroken runs differ ({different[0]}), so that no broken one can be judged")
        while len(kills) < config.kills:
            folder = Path(tempfile.mkdtemp(dir=temporary))
            first = len(kills)
            error = _broken(config, folder, pace, rng, kills)
            different = [error] if error else differences(outcome(folder), unbroken)
            if len(kills) == first and not different:
                continue  # It had ended before the moment came.
            unequal += [f"run {runs}: {difference}" for difference in different]
            for kill in kills[first:]:
                kill["run"] = runs
            killed = ", ".join(kill["phase"] for kill in kills[first:]) or "never"
            print(f"run {runs}, killed: {killed}; {'; '.join(different) or 'equal'}", flush=True)
            runs += 1
            equal += not different
    before = sum(kill["checkpoint"] is None for kill in kills)
    phases = Counter(kill["phase"] for kill in kills)
    return {
        "config": dataclasses.asdict(config),
        "runs": runs,
        "equal": equal,
        "unequal": unequal,
        "kills": kills,
        "phases": phases,
        "before_first_checkpoint": before,
        "conclusion": f"{equal} of {runs} runs with {len(kills)} kills ended bitwise as the unbroken one; "
        f"{phases['start-up']} kills at start-up, {phases['stepping']} between saves, {phases['saving']} in a save, "
        f"{before} before the first checkpoint.",
    }


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run ended with.

    Args:
      folder: the folder of the run.

    Returns:
      ``leaves``, the digest of each leaf of the last checkpoint; ``reports`` without their times; ``genotype``.
    """
    reports = read_metrics(folder / "metrics.jsonl")
    manifest = folder / "checkpoints" / str(max(checkpoints(folder))) / "manifest" / "metadata"
    leaves = json.loads(manifest.read_text())["leaves"]
    return {
        # A checkpoint is a pair: the state, and the seconds that the run took, which are not the same twice.
        "leaves": {name: leaf["sha256"] for name, leaf in leaves.items() if name.startswith("[0]")},
        "reports": [{name: v for name, v in report.items() if name != "wall_s"} for report in reports],
        "genotype": json.loads((folder / "result.json").read_text())["genotype"],
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names what is not the same in two outcomes.

    Args:
      found: what `outcome` returns for one run.
      expected: the same for the other.

    Returns:
      A phrase for each of the three parts that differ.
    """
    phrases = []
    if wrong := [name for name in expected["leaves"] if found["leaves"].get(name) != expected["leaves"][name]]:
        phrases.append(f"{len(wrong)} of {len(expected['leaves'])} leaves differ, the first is {wrong[0]}")
    if found["reports"] != expected["reports"]:
        steps = ([report["step"] for report in one["reports"]] for one in (found, expected))
        phrases.append("reports differ, of steps {} and {}".format(*steps))
    if found["genotype"] != expected["genotype"]:
        phrases.append(f"the genotype is {found['genotype']}, not {expected['genotype']}")
    return phrases


def checkpoints(folder: Path) -> list[int]:
    """The steps of the complete checkpoints of a run, as another process can see them.

    Args:
      folder: the folder of the run.

    Returns:
      The steps, in no order; empty if there is none.
    """
    return [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]


def _unbroken(config: Config, folder: Path) -> tuple[dict[str, Any], Pace]:
    start = time.monotonic()
    if _start(config, folder).wait() != 0:
        raise RuntimeError(f"the unbroken run failed: {_last_words(folder)}")
    process_s = time.monotonic() - start
    reports = read_metrics(folder / "metrics.jsonl")
    report_s = (reports[-1]["wall_s"] - reports[0]["wall_s"]) / max(1, len(reports) - 1)
    return outcome(folder), Pace(process_s, report_s, [report["step"] for report in reports])


def _broken(
    config: Config, folder: Path, pace: Pace, rng: np.random.Generator, kills: list[dict[str, Any]]
) -> str | None:
    """Runs to the end, with kills that it appends to `kills`; returns what a process that failed said."""
    another = True
    while True:
        saved = max(checkpoints(folder), default=0)
        stale = _last_line(folder)
        process = _start(config, folder)
        if another and len(kills) < config.kills:
            kill = _kill(process, folder, _moment(rng, pace, saved), saved, stale)
            if kill is not None:
                kills.append(kill)
                another = rng.random() < config.again
                continue
        return _last_words(folder) if process.wait() != 0 else None


def _moment(rng: np.random.Generator, pace: Pace, saved: int) -> Moment:
    """Half of the moments by the clock alone, most of them in start-up; the others follow a report and its save."""
    ahead = [step for step in pace.steps if step > saved]
    if not ahead or rng.random() < 0.5:
        return Moment(0, rng.uniform(0, pace.process_s))
    return Moment(int(rng.choice(ahead)), rng.uniform(0, pace.report_s))


def _kill(
    process: subprocess.Popen[bytes], folder: Path, moment: Moment, saved: int, stale: bytes
) -> dict[str, Any] | None:
    """Kills a process at a moment; returns the record of it, or None if the process has ended before.

    `saved` and `stale` are the newest checkpoint and the last report before it started: a line is the process's own if
    it is another one, and of a later step than it started from.
    """

    def reported() -> int:
        line = _last_line(folder)
        step = json.loads(line)["step"] if line and line != stale else 0
        return step if step > saved else 0

    start = time.monotonic()
    since = start if moment.step == 0 else None
    while process.poll() is None:
        if since is None and reported() >= moment.step:
            since = time.monotonic()
        if since is not None and time.monotonic() - since >= moment.seconds:
            process.kill()
            process.wait()
            seconds = time.monotonic() - start
            step, newest = reported(), max(checkpoints(folder), default=None)
            phase = "start-up" if not step else "saving" if newest is None or newest < step else "stepping"
            return {"seconds": seconds, "checkpoint": newest, "phase": phase}
        time.sleep(POLL_S)
    return None


def _start(config: Config, folder: Path) -> subprocess.Popen[bytes]:
    """Starts or resumes the search; all processes of a suite share the cache of programs beside their folders."""
    command = [sys.executable, "-m", "experiments.search", "--dataset", "digits", "--channels", "4", "--cells", "1"]
    command += ["--batch-size", "16", "--steps", str(config.steps), "--report-every", str(config.report_every)]
    command += ["--out", str(folder)]
    if (folder / "config.json").exists():
        command.append("--resume")
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with open(_said(folder), "wb") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=said)


def _said(folder: Path) -> Path:
    return folder.with_name(folder.name + ".stderr")


def _last_words(folder: Path) -> str:
    return (_said(folder).read_text().strip().splitlines() or ["nothing was said"])[-1]


def _last_line(folder: Path) -> bytes:
    """The last complete line of the reports; empty if there is none."""
    try:
        return (b"\n" + (folder / "metrics.jsonl").read_bytes()).split(b"\n")[-2]
    except FileNotFoundError:
        return b""


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws when each kill came and which checkpoint there was.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    for phase in PHASES:
        kills = [kill for kill in result["kills"] if kill["phase"] == phase]
        axes.plot(
            [kill["seconds"] for kill in kills],
            [kill["checkpoint"] or 0 for kill in kills],
            "o",
            alpha=0.6,
            label=f"{phase} ({len(kills)})",
        )
    axes.set(xlabel="seconds from the start of the process to the kill", ylabel="step of the newest checkpoint")
    axes.set_title(f"{result['equal']} of {result['runs']} runs ended bitwise as the unbroken one", fontsize=10)
    axes.legend()
