"""Time and memory of a step of several methods on the DARTS space, in turn, and of the passes that it consists of.

The batch is random and stays the same. All run in turn (A B C A B C ...), so that a machine that is slow for a while is
slow for all. How much a program allocates beside its state and batch is what its compiler says.
"""

import dataclasses
import statistics
import sys
import time
from typing import Any

import jax
from matplotlib.axes import Axes

from experiments.suites.steps import StepConfig, build, parts, ratios, same
from gaea_jax.errors import UsageError
from gaea_jax.nets.darts.supernet import evaluations
from gaea_jax.train import run as run_steps
from gaea_jax.train.loop import compile_ahead
from gaea_jax.train.memory import give_back

_BILEVEL = {"objective": "bilevel", "order": "alternating"}
_NASP = {"space": "darts_nozero", "method": "nasp", **_BILEVEL}
_ENTRANNAS = {"space": "darts_nozero", "method": "entrannas", **_BILEVEL}
_DST = {**_ENTRANNAS, "method": "entrannas_dst"}
_DARTS = {"space": "darts", "method": "darts", **_BILEVEL}
# Name to what differs from the defaults of a step. The last is what the others are compared with.
STEPS: dict[str, dict[str, Any]] = {
    "nasp, weights": {**_NASP, "passes": "weights"},
    "nasp, architecture": {**_NASP, "passes": "arch"},
    "nasp": _NASP,
    "gaea, joint": {"space": "darts", "method": "gaea", "objective": "single-level", "order": "joint"},
    "entrannas, own features": {**_ENTRANNAS, "shared": False},
    "entrannas": _ENTRANNAS,
    "entrannas-dst, at the start": _DST,
    "entrannas-dst, two connections a node": {**_DST, "max_connections": 2},
    "darts, weights": {**_DARTS, "passes": "weights"},
    "darts, architecture": {**_DARTS, "passes": "arch"},
    "darts, first order": _DARTS,
    "darts, second order": {**_DARTS, "objective": "bilevel-unrolled", "hypergradient": "finite-difference"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    only: tuple[str, ...] = tuple(STEPS)
    """Which steps."""
    channels: int = 16
    """Width of the first stage."""
    cells: int = 8
    """Layers."""
    batch_size: int = 16
    """Images in a batch."""
    large_batch_size: int = 64
    """Images in a batch of the programs that are compiled for their memory alone; 0 for none."""
    image: int = 32
    """Side of an image in pixels, of three channels."""
    rounds: int = 3
    """How often each runs."""
    steps: int = 5
    """Steps a round."""


def run(config: Config) -> dict[str, Any]:
    """Times the steps.

    Args:
      config: what to time.

    Returns:
      ``config``; for each step ``evaluations``, the operations of one forward pass of the weights at the start,
      ``step_s``, seconds in each round, their ``median``, ``compile_s``, ``temporaries_mb`` of the compiled step and
      ``large_temporaries_mb`` of that for the large batch; ``ratio`` of the last one's time by that of each: min,
      median and max over the rounds; and ``conclusion``, a line for each.

    Raises:
      UsageError: on ``only``, for an unknown name.
    """
    if unknown := [name for name in config.only if name not in STEPS]:
        raise UsageError("only", f"{', '.join(unknown)} unknown; known are {'; '.join(STEPS)}")
    found: dict[str, dict[str, Any]] = {name: {} for name in config.only}
    size = {name: getattr(config, name) for name in ("channels", "cells", "image")}
    ready = {}
    if config.large_batch_size:
        for name, result in found.items():
            _, compiled = _compiled(StepConfig(**STEPS[name], **size, batch_size=config.large_batch_size))
            result["large_temporaries_mb"] = _temporaries_mb(compiled)
            _say(f"{name}: {result['large_temporaries_mb']:,.0f} MB for batches of {config.large_batch_size}")
            del compiled
            # The code of all programs would be more pieces of memory than a process may have.
            jax.clear_caches()
    for name, result in found.items():
        start = time.perf_counter()
        which = StepConfig(**STEPS[name], **size, batch_size=config.batch_size)
        ready[name], compiled = _compiled(which)
        result |= {"compile_s": time.perf_counter() - start, "temporaries_mb": _temporaries_mb(compiled), "step_s": []}
        result["evaluations"] = _evaluations(which)
        _say(f"{name}: compiled in {result['compile_s']:.0f} s")
    give_back()
    _say("timing; run nothing else now")
    for number in range(-1, config.rounds):
        for name, (step, state, source) in ready.items():
            start = time.perf_counter()
            until = int(state.step) + (config.steps if number >= 0 else 1)
            state, _ = jax.block_until_ready(run_steps(step, state, source, until))
            ready[name] = step, state, source
            if number >= 0:
                found[name]["step_s"].append((time.perf_counter() - start) / config.steps)
    last = found[config.only[-1]]["step_s"]
    lines = []
    for name, result in found.items():
        result["median"], result["ratio"] = statistics.median(result["step_s"]), ratios(last, result["step_s"])
        line = f"{name}: {result['evaluations']} operations, {result['median']:.3f} s a step"
        line += f", {result['temporaries_mb']:,.0f} MB"
        if config.large_batch_size:
            line += f" ({result['large_temporaries_mb']:,.0f} MB for batches of {config.large_batch_size})"
        ratio = result["ratio"]
        line += f"; {config.only[-1]} takes {ratio['median']:.2f} times as long"
        lines.append(f"{line} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    return {"config": dataclasses.asdict(config), "steps": found, "conclusion": "\n".join(lines)}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _compiled(config: StepConfig) -> Any:
    state, batch, step = build(config)
    source = same(batch)
    return (step, state, source), compile_ahead(step, state, source, "auto")


def _evaluations(config: StepConfig) -> int:
    net, space, method, _ = parts(config)
    key = jax.random.key(0)
    arch = method.init(space, key)
    memory = method.remember(space, arch, {}, 0)
    return evaluations(net, method.mixture(space, arch, memory, key, 0, "weights"))


def _temporaries_mb(compiled: jax.stages.Compiled) -> float | None:
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes / 1e6 if memory else None


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the time of each step, with the range over the rounds.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    names = list(result["steps"])
    medians = [step["median"] for step in result["steps"].values()]
    spans = [[abs(limit(step["step_s"]) - step["median"]) for step in result["steps"].values()] for limit in (min, max)]
    axes.barh(names, medians, xerr=spans, height=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("seconds a step")
