"""Images per second of a data set that lies on the device, and of the same set streamed from disk.

Both give the same batches (flip, crop and normalisation included) and run in turn, so that a machine that is slow for a
while is slow for both. They are timed twice: batches only, and beside a device that is busy with each batch; there the
time of a step whose batch never changes says what a source costs. A round begins with nothing read ahead.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from gaea_jax.data import Dataset, load_dataset, open_dataset, search_source
from gaea_jax.errors import UsageError

_SIDE = 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    dataset: str = "cifar10"
    """Name of a TFDS image set."""
    data_dir: pathlib.Path | None = None
    """Folder of prepared TFDS sets."""
    batch_size: int = 64
    """Images in a batch."""
    steps: int = 200
    """Batches a round."""
    rounds: int = 5
    """How often each of the two runs."""
    work: int = 2
    """Products of two matrices of side 1024 in a step of the busy device."""
    seed: int = 0
    """Seed of all batches."""


def run(config: Config) -> dict[str, Any]:
    """Times both sources.

    Args:
      config: what to time.

    Returns:
      ``config``; ``images_per_s`` of ``device`` and ``stream``, batches only, a number a round; ``busy_step_s``,
      seconds a step of the busy device with the batches of ``device`` and ``stream`` and with one batch, ``alone``;
      the medians of both as ``images_per_s_median`` and ``busy_step_s_median``; and ``conclusion``, one line.

    Raises:
      UsageError: on a wrong field.
    """
    for name in ("steps", "rounds", "work"):
        if getattr(config, name) < 1:
            raise UsageError(name, f"must be more than 0, not {getattr(config, name)}")
    if config.dataset == "digits":
        raise UsageError("dataset", "must be a TFDS set that is stored on disk; the digits are always in memory")

    def source_of(dataset: Dataset) -> Any:
        key = jax.random.key(config.seed)
        return search_source(dataset, key, config.batch_size, objective="single-level", order="joint")

    device, stream = (source_of(read(config.dataset, config.data_dir)) for read in (load_dataset, open_dataset))
    held, weight = device(0), jnp.eye(_SIDE)

    @jax.jit
    def busy(state: jax.Array, batch: Any) -> jax.Array:
        state = state + batch["weights"][0].mean()
        return jax.lax.fori_loop(0, config.work, lambda _, state: state @ weight, state)

    def batches_only(source: Callable[[int], Any]) -> float:
        return config.batch_size / _seconds_a_step(lambda _, i: jax.block_until_ready(source(i)), None, config.steps)

    def busy_step(source: Callable[[int], Any]) -> float:
        return _seconds_a_step(lambda state, i: busy(state, source(i)), weight, config.steps)

    # Everything is compiled before the clock runs.
    with stream:
        jax.block_until_ready((busy(weight, held), stream(0)))
    images_per_s: dict[str, list[float]] = {"device": [], "stream": []}
    busy_step_s: dict[str, list[float]] = {"alone": [], "device": [], "stream": []}
    for _ in range(config.rounds):
        busy_step_s["alone"].append(busy_step(lambda i: held))
        for measure, found in ((batches_only, images_per_s), (busy_step, busy_step_s)):
            found["device"].append(measure(device))
            with stream:
                found["stream"].append(measure(stream))
    rate = {name: statistics.median(rates) for name, rates in images_per_s.items()}
    step_s = {name: statistics.median(times) for name, times in busy_step_s.items()}
    conclusion = (
        f"{config.dataset}: {rate['device']:.0f} images/s on the device, {rate['stream']:.0f} streamed; a busy step of "
        f"{step_s['alone']:.4f} s takes {step_s['device']:.4f} s and {step_s['stream']:.4f} s with them"
    )
    return {
        "config": {**dataclasses.asdict(config), "data_dir": config.data_dir and str(config.data_dir)},
        "images_per_s": images_per_s,
        "busy_step_s": busy_step_s,
        "images_per_s_median": rate,
        "busy_step_s_median": step_s,
        "conclusion": conclusion,
    }


def _seconds_a_step(advance: Callable[[Any, int], Any], state: Any, steps: int) -> float:
    start = time.perf_counter()
    for step in range(steps):
        state = advance(state, step)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the images per second of each round, of both sources, batches only and beside a busy device.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    batch_size, rounds = result["config"]["batch_size"], range(1, result["config"]["rounds"] + 1)
    for name, colour in (("device", "C0"), ("stream", "C1")):
        axes.plot(rounds, result["images_per_s"][name], "o-", color=colour, label=f"{name}, batches only")
        beside = [batch_size / seconds for seconds in result["busy_step_s"][name]]
        axes.plot(rounds, beside, "s--", color=colour, label=f"{name}, busy")
    alone = [batch_size / seconds for seconds in result["busy_step_s"]["alone"]]
    axes.plot(rounds, alone, ":", color="C2", label="busy, one batch only")
    axes.set(xlabel="round", ylabel="images per second", xticks=list(rounds), yscale="log")
    axes.legend()
