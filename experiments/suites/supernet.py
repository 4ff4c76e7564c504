"""Time of a search step, as the loop of a search makes it, beside that of an external program on the same machine.

Both run in turn (A B A B ...), so that a machine that is slow for a while is slow for both. The batch is random and
stays the same: data loading is not part of the step. A product of two large matrices, timed in every round, says how
fast the machine could be.
"""

import contextlib
import dataclasses
import json
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from experiments.suites.steps import StepConfig, build, ratios, same
from gaea_jax.errors import UsageError
from gaea_jax.train import run as run_steps
from gaea_jax.train.loop import compile_ahead
from gaea_jax.train.memory import give_back

# Side of the square matrices whose product is the machine's peak, and how often it is made a round.
_SIDE = 2048
_PRODUCTS = 3
_POLL_S = 0.05


@dataclasses.dataclass(frozen=True)
class Config(StepConfig):
    """What to time."""

    rounds: int = 5
    """How often each of the two runs."""
    steps: int = 5
    """Steps a round, after one that does not count."""
    yardstick: str | None = None
    """A command that prints a line of JSON with ``step_s_median``, the seconds of its step."""


def run(config: Config) -> dict[str, Any]:
    """Times the step, and the yardstick.

    Args:
      config: what to time.

    Returns:
      ``config``; ``step_s``, the mean of a round's steps, and ``median`` of the rounds; ``images_per_s``;
      ``gflop_per_s``, by what XLA counts in the compiled step (the rounds of a loop in it once), and
      ``peak_gflop_per_s``, that of a matrix product;
      ``temporaries_mb`` of the compiled step; ``compile_s``; ``peak_mb``, the largest resident memory of this process
      while it stepped, as a search does, and ``compile_peak_mb``, that before; with a yardstick also ``yardstick_s``,
      ``yardstick_peak_mb`` of its whole process, and ``ratio``: min, median and max over the rounds of its time by ours
      (more than 1: ours is faster); and ``conclusion``, a few lines. Resident memory is None where there is no Linux.

    Raises:
      UsageError: on ``yardstick``, if the command fails or prints no such line.
    """
    state, batch, step = build(config)
    source = same(batch)
    start = time.perf_counter()
    compiled = compile_ahead(step, state, source, "auto")
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    flop = (compiled.cost_analysis() or {})["flops"]
    matrix = jnp.ones((_SIDE, _SIDE))
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    compile_peak = _peak_mb()
    give_back()
    _forget_peak()
    ours: list[float] = []
    theirs: list[tuple[float, float | None]] = []
    products: list[float] = []

    def advance(steps: int) -> None:
        nonlocal state
        state, metrics = run_steps(step, state, source, int(state.step) + steps)
        jax.block_until_ready((state, metrics))

    for _ in range(config.rounds):
        advance(1)
        ours.append(_seconds(lambda: advance(config.steps)) / config.steps)
        products.append(min(_seconds(lambda: jax.block_until_ready(product(matrix, matrix))) for _ in range(_PRODUCTS)))
        if config.yardstick:
            theirs.append(_yardstick(config.yardstick))
    median = statistics.median(ours)
    peak = 2 * _SIDE**3 / statistics.median(products) / 1e9
    result: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "step_s": ours,
        "median": median,
        "images_per_s": config.batch_size / median,
        "gflop_per_s": flop / median / 1e9,
        "peak_gflop_per_s": peak,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
        "peak_mb": _peak_mb(),
        "compile_peak_mb": compile_peak,
        "compile_s": compile_s,
    }
    lines = [
        f"{config.name}: {median:.3f} s a step, {result['images_per_s']:.0f} images/s",
        f"{result['gflop_per_s']:.0f} of {peak:.0f} GFLOP/s",
    ]
    if result["peak_mb"]:
        lines.append(f"{result['peak_mb']:,.0f} MB resident while it steps")
    if theirs:
        result["yardstick_s"], peaks = (list(found) for found in zip(*theirs, strict=True))
        result["yardstick_peak_mb"] = max(filter(None, peaks), default=None)
        ratio = result["ratio"] = ratios(result["yardstick_s"], ours)
        lines[0] += f"; the yardstick takes {ratio['median']:.2f} times as long"
        lines[0] += f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
        if result["yardstick_peak_mb"]:
            lines[-1] += f"; the yardstick {result['yardstick_peak_mb']:,.0f} MB at most"
    return {**result, "conclusion": "\n".join(lines)}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Has Linux count the peak of resident memory from here on, without what the compiler took."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(process: str = "self") -> float | None:
    """The largest resident memory of a process, as far as Linux still tells."""
    try:
        status = Path("/proc", process, "status").read_text()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return kibibytes[0] * 1024 / 1e6 if kibibytes else None


def _yardstick(command: str) -> tuple[float, float | None]:
    """Runs the command; returns seconds a step and its largest resident memory."""
    peak = None
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(shlex.split(command), stdout=out, stderr=err)
        except OSError as error:
            raise UsageError("yardstick", f"cannot be run ({error.strerror}: {error.filename})") from error
        while process.poll() is None:
            peak = _peak_mb(str(process.pid)) or peak
            time.sleep(_POLL_S)
        out.seek(0)
        err.seek(0)
        for line in reversed(out.readlines()):
            try:
                return float(json.loads(line)["step_s_median"]), peak
            except (ValueError, KeyError, TypeError):
                continue
        last = (err.read().strip().splitlines() or ["nothing"])[-1]
    raise UsageError("yardstick", f"printed no JSON with step_s_median (status {process.returncode}: {last})")


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the time of a step in each round, ours and the yardstick's.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    rounds = range(1, len(result["step_s"]) + 1)
    axes.plot(rounds, result["step_s"], "o-", label="gaea_jax")
    if "yardstick_s" in result:
        axes.plot(rounds, result["yardstick_s"], "s-", label="yardstick")
    axes.set(xlabel="round", ylabel="seconds a step", xticks=list(rounds))
    axes.set_ylim(bottom=0)
    axes.legend()
