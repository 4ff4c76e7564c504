"""Time from the start of a search's process to its first finished step, cold and with the programs of an earlier one.

Each round starts two processes of ``python -m experiments.search`` with a cache of compiled programs of their own: the
first finds it empty, the second finds what the first compiled.
"""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from matplotlib.axes import Axes

from gaea_jax.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parents[2]
STARTS = ("cold", "warm")
_POLL_S = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """What to start."""

    space: str = "nas_bench_201_nozero"
    """Name of the search space."""
    method: str = "gaea"
    """Name of the search method."""
    order: str = "joint"
    """Order of the step, "joint" or "alternating"."""
    channels: int = 16
    """Width of the first stage."""
    cells: int = 5
    """Cells in each stage of NAS-Bench-201; layers of DARTS."""
    batch_size: int = 64
    """Images in a batch."""
    dataset: str = "digits"
    """Name of the data set."""
    data_dir: pathlib.Path | None = None
    """Folder of prepared TFDS sets."""
    rounds: int = 3
    """How often both start."""


def run(config: Config) -> dict[str, Any]:
    """Starts searches of one step.

    Args:
      config: what to start.

    Returns:
      ``config``; ``seconds`` of "cold" and "warm" starts, a number a round, from the start of the process to the report
      of its first step; their medians, ``median``; and ``conclusion``, one line.

    Raises:
      UsageError: the search cannot run; named as the search names it.
    """
    seconds: dict[str, list[float]] = {start: [] for start in STARTS}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for start in STARTS:
                seconds[start].append(_first_step(config, pathlib.Path(folder), start))
    median = {start: statistics.median(found) for start, found in seconds.items()}
    conclusion = (
        f"{config.space}, {config.method}, {config.order}, {config.cells} cells: "
        f"the first step is done {median['cold']:.1f} s after a cold start, {median['warm']:.1f} s after a warm one"
    )
    return {
        "config": {**dataclasses.asdict(config), "data_dir": config.data_dir and str(config.data_dir)},
        "seconds": seconds,
        "median": median,
        "conclusion": conclusion,
    }


def _first_step(config: Config, folder: pathlib.Path, start: str) -> float:
    command = [sys.executable, "-m", "experiments.search", "--steps", "1", "--out", str(folder / start)]
    for name in ("space", "method", "order", "channels", "cells", "batch_size", "dataset", "data_dir"):
        if (value := getattr(config, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    reports = folder / start / "metrics.jsonl"
    began = time.perf_counter()
    seconds = None
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            if seconds is None and reports.exists() and reports.stat().st_size:
                seconds = time.perf_counter() - began
            time.sleep(_POLL_S)
        said = process.stderr.read() if process.stderr else ""
    if process.returncode or seconds is None:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise UsageError("space", f"the search did not run (status {process.returncode}: {last})")
    return seconds


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the seconds of each start.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    for place, start in enumerate(STARTS):
        found = result["seconds"][start]
        axes.bar(place, result["median"][start], 0.6, alpha=0.5)
        axes.plot([place] * len(found), found, "ko")
    axes.set_xticks(range(len(STARTS)), [f"{start} start" for start in STARTS])
    axes.set_ylabel("seconds to the first finished step")
