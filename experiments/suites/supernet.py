"""Time of one search step, beside that of an external program on the same machine.

Both run in turn (A B A B ...), so that a machine that is slow for a while is slow for both. The batch is random and
stays the same: data loading is not part of the step.
"""

import dataclasses
import json
import shlex
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from gaea_jax.errors import UsageError
from gaea_jax.methods import get_method
from gaea_jax.nets import supernet
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.train import SearchState, make_search_step
from gaea_jax.train.config import DTYPES
from gaea_jax.train.recipe import sgd
from gaea_jax.train.state import compiled_once


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    space: str = "nas_bench_201_nozero"
    """Name of the search space."""
    method: str = "gaea"
    """Name of the search method, at its defaults; one that samples takes another sample at every step."""
    objective: str = "single-level"
    """Objective of the step."""
    order: str = "joint"
    """Order of the step, "joint" or "alternating"."""
    hypergradient: str = "exact"
    """Of "bilevel-unrolled", "exact" or "finite-difference"."""
    partial: int | None = None
    """K of a method with partial channels, if other than its default."""
    channels: int = 16
    """Width of the first stage."""
    cells: int = 1
    """Cells in each stage of NAS-Bench-201; layers of DARTS."""
    batch_size: int = 64
    """Images in a batch."""
    image: int = 32
    """Side of an image in pixels, of three channels."""
    dtype: str = "float32"
    """Compute type."""
    rounds: int = 5
    """How often each of the two runs."""
    steps: int = 5
    """Steps a round, after two that do not count; their median is the round's time."""
    yardstick: str | None = None
    """A command that prints a line of JSON with ``step_s_median``, the seconds of its step."""


def run(config: Config) -> dict[str, Any]:
    """Times the step, and the yardstick.

    Args:
      config: what to time.

    Returns:
      ``config``; ``step_s``, a median a round, and their ``median``; ``images_per_s``; ``temporaries_mb`` of the
      compiled step; ``compile_s``; with a yardstick also ``yardstick_s`` and ``ratio``: min, median and max over the
      rounds of its time by ours (more than 1: ours is faster); and ``conclusion``, one line.

    Raises:
      UsageError: on ``yardstick``, if the command fails or prints no such line.
    """
    state, batch, step = _build(config)
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(config.rounds):
        times = []
        for _ in range(config.steps + 2):
            start = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - start)
        ours.append(statistics.median(times[2:]))
        if config.yardstick:
            theirs.append(_yardstick(config.yardstick))
    median = statistics.median(ours)
    name = " ".join((config.method, config.objective, config.order))
    conclusion = f"{name}: {median:.3f} s a step, {config.batch_size / median:.0f} images/s"
    result: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "step_s": ours,
        "median": median,
        "images_per_s": config.batch_size / median,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
        "compile_s": compile_s,
    }
    if theirs:
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        result["yardstick_s"] = theirs
        ratio = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
        result["ratio"] = ratio
        conclusion += f"; the yardstick takes {ratio['median']:.2f} times as long"
        conclusion += f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
    return {**result, "conclusion": conclusion}


def _build(config: Config) -> tuple[SearchState, Any, Any]:
    space = get_space(config.space)
    method = get_method(config.method)(**({} if config.partial is None else {"partial": config.partial}))
    net = supernet(
        space,
        channels=config.channels,
        cells=config.cells,
        num_classes=10,
        dtype=DTYPES[config.dtype],
        **method.net,
    )
    weights = sgd(0.025, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)
    tx = search_optimizer(weights=weights, arch=method.optimizer(space))
    step = make_search_step(
        net,
        space,
        method,
        tx,
        objective=config.objective,
        order=config.order,
        hypergradient=config.hypergradient,
    )
    shape = (config.image, config.image, 3)
    state = compiled_once(lambda key: SearchState.create(net, space, method, tx, shape, key))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (config.batch_size, *shape))
    labels = jax.random.randint(jax.random.key(2), (config.batch_size,), 0, 10, jnp.int32)
    streams = ("weights",) if config.order == "joint" else ("weights", "arch")
    return state, dict.fromkeys(streams, (images, labels)), step


def _yardstick(command: str) -> float:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    for line in reversed(done.stdout.splitlines()):
        try:
            return float(json.loads(line)["step_s_median"])
        except (ValueError, KeyError, TypeError):
            continue
    last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise UsageError("yardstick", f"printed no JSON with step_s_median (status {done.returncode}: {last})")


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
