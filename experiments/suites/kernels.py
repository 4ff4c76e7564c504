"""Time of each candidate operation, as plain Flax writes it and as this library does, in turn.

Both have the same BatchNorm, so that what differs is how convolutions and poolings are lowered. Each is timed as a
program of its own, and in a branch of a conditional, where a sampled operation is and where XLA:CPU leaves convolutions
as they were written.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from matplotlib.axes import Axes

from gaea_jax.nets.darts.operations import SEPARABLE, Kind, Operation
from gaea_jax.nets.ops import BatchNorm, Node, nas_bench_201_operation
from gaea_jax.spaces.darts import OPERATIONS as DARTS_OPERATIONS
from gaea_jax.train.state import compiled_once

# Operations of NAS-Bench-201 and the sides of their kernels; avg_pool_3x3 has no BatchNorm there, which DARTS' has.
DENSE = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
# skip_connect and none compute nothing where the stride is 1.
OPERATIONS = (*DENSE, *DARTS_OPERATIONS[1:3], *DARTS_OPERATIONS[4:])
PLACES = ("program", "branch")
PASSES = ("forward", "both")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    channels: int = 16
    """Channels in and out."""
    batch_size: int = 64
    """Images in a batch."""
    image: int = 32
    """Side of the features in pixels."""
    rounds: int = 5
    """How often each of the two runs."""
    calls: int = 3
    """Calls a round, after one that does not count; their median is the round's time."""


class Plain(nn.Module):
    """A candidate operation of stride 1 with the convolutions and poolings of Flax.

    Attributes:
      operation: its name.
      features: channels in and out.
    """

    operation: str
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same shape, with batch statistics."""
        if "pool" in self.operation:
            pool: Callable[..., jax.Array] = nn.max_pool
            if self.operation == "avg_pool_3x3":
                pool = _avg_pool
            return BatchNorm(self.features, affine=False)(pool(x, (3, 3), padding="SAME"), True)
        if self.operation in DENSE:
            side = DENSE[self.operation]
            x = nn.Conv(self.features, (side, side), use_bias=False)(nn.relu(x))
            return BatchNorm(self.features, affine=False)(x, True)
        side, dilation, times = SEPARABLE[self.operation]
        for _ in range(times):
            x = nn.Conv(
                self.features,
                (side, side),
                kernel_dilation=(dilation, dilation),
                feature_group_count=self.features,
                use_bias=False,
            )(nn.relu(x))
            x = nn.Conv(self.features, (1, 1), use_bias=False)(x)
            x = BatchNorm(self.features, affine=False)(x, True)
        return x


def _avg_pool(x: jax.Array, window: tuple[int, int], padding: str) -> jax.Array:
    return nn.avg_pool(x, window, padding=padding, count_include_pad=False)


class Ours(nn.Module):
    """The same operation as the supernets have it.

    Attributes:
      operation: its name.
      features: channels in and out.
    """

    operation: str
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same shape, with batch statistics."""
        if self.operation in DENSE:
            how: dict[str, Any] = {"affine": False, "dtype": jnp.float32, "train": True, "name": self.operation}
            return nas_bench_201_operation(self.operation, Node(x), **how)
        kind = Kind(self.operation, self.features, 1, affine=False, norm_pools=True, dtype=jnp.float32)
        return Operation(kind, 1)(x, True)[0]


def run(config: Config) -> dict[str, Any]:
    """Times all operations.

    Args:
      config: what to time.

    Returns:
      ``config``; ``rows``, one for each of `OPERATIONS`, `PLACES` and `PASSES` (the forward pass; or that and the
      gradients of features and parameters) with ``operation``, ``place``, ``pass``, ``plain_ms`` and ``ours_ms``
      (a median a round, in milliseconds), and ``ratio``, the median over the rounds of the first by the second (more
      than 1: ours is faster); and ``conclusion``, their table.
    """
    rows = []
    for operation, place in itertools.product(OPERATIONS, PLACES):
        made = {name: _programs(module(operation, config.channels), place, config) for name, module in _FORMS.items()}
        for passes in PASSES:
            found: dict[str, list[float]] = {name: [] for name in _FORMS}
            for _ in range(config.rounds):
                for name, programs in made.items():
                    found[name].append(_milliseconds(programs[passes], config.calls))
            ratio = statistics.median(plain / ours for plain, ours in zip(found["plain"], found["ours"], strict=True))
            row = {"operation": operation, "place": place, "pass": passes, "ratio": ratio}
            rows.append({**row, **{f"{name}_ms": times for name, times in found.items()}})
    result = {"config": dataclasses.asdict(config), "rows": rows}
    return {**result, "conclusion": "\n".join(_lines(rows))}


_FORMS: dict[str, Callable[[str, int], nn.Module]] = {"plain": Plain, "ours": Ours}


def _programs(module: nn.Module, place: str, config: Config) -> dict[str, Callable[[], Any]]:
    """For each of `PASSES` the compiled program."""
    shape = (config.batch_size, config.image, config.image, config.channels)
    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(key, shape) for key in keys[:2])
    variables = compiled_once(lambda key: module.init(key, x))(keys[2])
    running = variables.get("batch_stats", {})

    def apply(params: Any, x: jax.Array) -> jax.Array:
        out, _ = module.apply({"params": params, "batch_stats": running}, x, mutable=["batch_stats"])
        return out

    def forward(params: Any, x: jax.Array, there: jax.Array) -> jax.Array:
        if place == "program":
            return apply(params, x)
        return jax.lax.cond(there, apply, lambda params, x: jnp.zeros_like(x), params, x)

    def both(params: Any, x: jax.Array, there: jax.Array) -> Any:
        out, pull_back = jax.vjp(lambda params, x: forward(params, x, there), params, x)
        return out, pull_back(g)

    arguments = variables.get("params", {}), x, jnp.asarray(True)

    def program(function: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(function).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    return {"forward": program(forward), "both": program(both)}


def _milliseconds(program: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        program()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    """Median milliseconds, a line an operation and place."""
    head = f"{'operation':14}{'in a':10}" + "".join(f"{text:>26}" for text in ("forward", "forward and backward"))
    lines = [head, " " * 24 + f"{'plain':>10}{'ours':>8}{'ratio':>8}" * len(PASSES)]
    for (operation, place), pair in itertools.groupby(rows, key=lambda row: (row["operation"], row["place"])):
        cells = "".join(
            f"{statistics.median(row['plain_ms']):10.2f}{statistics.median(row['ours_ms']):8.2f}{row['ratio']:8.2f}"
            for row in pair
        )
        lines.append(f"{operation:14}{place:10}{cells}")
    return lines


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws how many times as long plain Flax takes, forward and backward together.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    for number, place in enumerate(PLACES):
        rows = [row for row in result["rows"] if row["place"] == place and row["pass"] == "both"]
        places = [index + (number - 0.5) * 0.38 for index in range(len(rows))]
        axes.barh(places, [row["ratio"] for row in rows], 0.38, label=f"in a {place}")
        axes.set_yticks(range(len(rows)), [row["operation"] for row in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time of plain Flax by ours, forward and backward")
    axes.legend()
