"""Time of a step of several seeds as one program, beside that of the same steps of one seed after another.

Both run in turn. The batch is random and stays the same.
"""

import contextlib
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from experiments.suites.steps import StepConfig, build, ratios
from gaea_jax.errors import UsageError
from gaea_jax.train.sweep import Runs, run_parallel


@dataclasses.dataclass(frozen=True)
class Config(StepConfig):
    """What to time."""

    seeds: int = 4
    """How many."""
    devices: int = 1
    """Spread over so many devices, which divide the seeds; on the CPU, fake ones that share its cores."""
    rounds: int = 5
    """How often each of the two runs."""
    steps: int = 3
    """Steps a round, of each seed."""


def run(config: Config) -> dict[str, Any]:
    """Times both.

    Args:
      config: what to time.

    Returns:
      ``config``; ``step_s``, seconds for a step of all seeds, "together" and "one by one", a number a round;
      ``compile_s`` of both programs; ``ratio``: min, median and max over the rounds of the second time by the first
      (more than 1: together is faster); ``difference``, the largest between two parameters or running statistics after
      the first round; and ``conclusion``, one line.

    Raises:
      UsageError: on ``seeds``, ``devices``, ``rounds`` or ``steps``.
    """
    for name in ("seeds", "devices", "rounds", "steps"):
        if getattr(config, name) < 1:
            raise UsageError(name, f"must be more than 0, not {getattr(config, name)}")
    if config.seeds % config.devices:
        raise UsageError("devices", f"must divide the {config.seeds} seeds, not be {config.devices}")
    devices = _devices(config.devices)
    state, batch, step = build(config)
    singles = [dataclasses.replace(state, key=jax.random.key(seed)) for seed in range(config.seeds)]
    spread, sharding = run_parallel(step, devices)
    together = jax.device_put(Runs(jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)), sharding)
    batches = jax.device_put(jax.tree.map(lambda leaf: jnp.stack([leaf] * config.seeds), batch), sharding)
    start = time.perf_counter()
    mapped = spread.lower(together, batches).compile()  # type: ignore[attr-defined]
    middle = time.perf_counter()
    alone = jax.jit(step).lower(state, batch).compile()
    compile_s = {"together": middle - start, "one by one": time.perf_counter() - middle}
    step_s: dict[str, list[float]] = {name: [] for name in compile_s}
    difference = 0.0
    for number in range(config.rounds):
        start = time.perf_counter()
        for _ in range(config.steps):
            together, _ = mapped(together, batches)
        jax.block_until_ready(together)
        middle = time.perf_counter()
        for _ in range(config.steps):
            singles = [alone(single, batch)[0] for single in singles]
        jax.block_until_ready(singles)
        step_s["together"].append((middle - start) / config.steps)
        step_s["one by one"].append((time.perf_counter() - middle) / config.steps)
        if number == 0:
            pairs = zip(map(_numbers, together.split()), map(_numbers, singles), strict=True)
            difference = max(float(abs(one - other).max()) for pair in pairs for one, other in zip(*pair, strict=True))
    ratio = ratios(step_s["one by one"], step_s["together"])
    seconds = {name: statistics.median(times) for name, times in step_s.items()}
    conclusion = (
        f"{config.name}, {config.seeds} seeds on {config.devices} devices: {seconds['together']:.3f} s a step of all, "
        f"{seconds['one by one']:.3f} s one by one, {ratio['median']:.2f} times as long ({ratio['min']:.2f} to "
        f"{ratio['max']:.2f}); after {config.steps} steps the states differ by {difference:.1e} at most"
    )
    result = {"config": dataclasses.asdict(config), "step_s": step_s, "compile_s": compile_s, "ratio": ratio}
    return {**result, "difference": difference, "conclusion": conclusion}


def _devices(count: int) -> list[jax.Device]:
    # Refused once something has asked for a device; then those that there are have to do.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    if len(devices) < count:
        raise UsageError("devices", f"must be at most the {len(devices)} there are, not {count}")
    return devices[:count]


def _numbers(state: Any) -> list[Any]:
    return [jax.device_get(leaf) for leaf in jax.tree.leaves((state.params, state.collections))]


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the time of a step of all seeds in each round.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    rounds = range(1, result["config"]["rounds"] + 1)
    for name, times in result["step_s"].items():
        axes.plot(rounds, times, "o-", label=name)
    axes.set(xlabel="round", ylabel="seconds a step of all seeds", xticks=list(rounds))
    axes.set_ylim(bottom=0)
    axes.legend()
