"""Time of one search step, dispatched from Python and in a compiled loop, in turn.

The batch is random and stays the same. Both loops make the same steps; how far their results are apart is printed too.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from experiments.suites.steps import StepConfig, build, ratios, same
from gaea_jax.train import run as run_steps
from gaea_jax.train.loop import State

LOOPS = ("python", "scan")


@dataclasses.dataclass(frozen=True)
class Config(StepConfig):
    """What to time."""

    rounds: int = 5
    """How often each of the two runs."""
    steps: int = 5
    """Steps a round."""


def run(config: Config) -> dict[str, Any]:
    """Times both loops.

    Args:
      config: what to time.

    Returns:
      ``config``; ``step_s`` of each loop, seconds a step, a number a round; ``first_round_s`` of each, with compiling,
      which does not count; ``ratio``: min, median and max over the rounds of the time of "scan" by that of "python"
      (less than 1: the compiled loop is faster); ``difference``, the largest between the two architectures after that
      first round; and ``conclusion``, one line.
    """
    initial, batch, step = build(config)
    source = same(batch)
    first_round_s: dict[str, float] = {}
    states: dict[str, Any] = {}
    for loop in LOOPS:
        start = time.perf_counter()
        states[loop] = _round(step, jax.tree.map(jnp.copy, initial), source, config.steps, loop)
        first_round_s[loop] = time.perf_counter() - start
    python, scan = (jax.tree.leaves(states[loop].params["arch"]) for loop in LOOPS)
    difference = max(float(jnp.abs(one - other).max()) for one, other in zip(python, scan, strict=True))
    step_s: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for _ in range(config.rounds):
        for loop in LOOPS:
            start = time.perf_counter()
            states[loop] = _round(step, states[loop], source, config.steps, loop)
            step_s[loop].append((time.perf_counter() - start) / config.steps)
    ratio = ratios(step_s["scan"], step_s["python"])
    seconds = {loop: statistics.median(times) for loop, times in step_s.items()}
    conclusion = (
        f"{config.name}: {seconds['python']:.3f} s a step from Python, {seconds['scan']:.3f} s in a compiled loop, "
        f"{ratio['median']:.2f} times as long ({ratio['min']:.2f} to {ratio['max']:.2f}); "
        f"after {config.steps} steps the architectures differ by {difference:.1e} at most"
    )
    return {
        "config": dataclasses.asdict(config),
        "step_s": step_s,
        "first_round_s": first_round_s,
        "ratio": ratio,
        "difference": difference,
        "conclusion": conclusion,
    }


def _round(step: Any, state: State, source: Any, steps: int, loop: str) -> State:
    until = int(state.step) + steps  # type: ignore[attr-defined]
    return jax.block_until_ready(run_steps(step, state, source, until, loop=loop)[0])


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the time of a step in each round, of both loops.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    rounds = range(1, result["config"]["rounds"] + 1)
    for loop, times in result["step_s"].items():
        axes.plot(rounds, times, "o-", label=f'loop "{loop}"')
    axes.set(xlabel="round", ylabel="seconds a step", xticks=list(rounds))
    axes.set_ylim(bottom=0)
    axes.legend()
