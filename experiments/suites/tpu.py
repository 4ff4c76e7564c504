"""Compiles steps for TPUs that are not there, and says what each chip would compute, hold and send.

XLA compiles ahead of time for a topology that it is told: no TPU is needed, but the package ``libtpu`` is, which
``pip install jax[tpu]`` brings. Figures are those of the compiled program, not measured ones. A step takes a minute or
more to compile.
"""

import collections
import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from matplotlib.axes import Axes

from experiments.suites.kernels import OPERATIONS, Ours
from experiments.suites.steps import StepConfig, batches, make
from gaea_jax.errors import UsageError
from gaea_jax.nets import network
from gaea_jax.spaces import get_space
from gaea_jax.spaces.published import PUBLISHED
from gaea_jax.train.loop import data_parallel
from gaea_jax.train.recipe import sgd
from gaea_jax.train.retrain import TrainState, make_train_step

# Space, method, objective and order.
_SEARCHES = (
    ("nas_bench_201", "gaea", "single-level", "joint"),
    ("nas_bench_201_nozero", "gaea", "single-level", "joint"),
    ("nas_bench_201_nozero", "gaea", "single-level", "alternating"),
    ("nas_bench_201_nozero", "darts", "bilevel", "alternating"),
    ("nas_bench_201_nozero", "darts", "bilevel-unrolled", "alternating"),
    ("nas_bench_201_nozero", "gdas", "bilevel", "alternating"),
    ("nas_bench_201_nozero", "gaea_gdas", "bilevel", "alternating"),
    ("nas_bench_201_nozero", "nasp", "bilevel", "alternating"),
    ("nas_bench_201_nozero", "random", "bilevel", "alternating"),
    ("darts", "gaea", "single-level", "joint"),
    ("darts", "darts", "bilevel", "alternating"),
    ("darts", "darts", "bilevel-unrolled", "alternating"),
    ("darts", "gdas", "bilevel", "alternating"),
    ("darts", "gaea_gdas", "bilevel", "alternating"),
    ("darts", "pc_darts", "bilevel", "alternating"),
    ("darts", "gaea_pc_darts", "single-level", "joint"),
    ("darts", "gaea_pc_darts", "bilevel", "alternating"),
    ("darts", "random", "bilevel", "alternating"),
    ("darts_nozero", "nasp", "bilevel", "alternating"),
    ("darts_nozero", "entrannas", "bilevel", "alternating"),
    ("darts_nozero", "entrannas_dst", "bilevel", "alternating"),
)
SEARCHES = {" ".join(search): search for search in _SEARCHES}
# The field of `Config` that has the number of cells, if not ``cells``.
_NUMBER_OF_CELLS = {"darts": "layers", "darts_nozero": "layers"}
# Space, and cell to retrain with the weight of its auxiliary head.
_BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
RETRAININGS = {
    "nas_bench_201 retrain": (_BEST, 0.0),
    "darts retrain": (str(PUBLISHED["GAEA_PC_DARTS_CIFAR10"]), 0.4),
}
STEPS = (*SEARCHES, *RETRAININGS, *OPERATIONS)
LOWERINGS = ("tpu", "cpu")
_COLLECTIVE = re.compile(r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+)(\d+)\[([\d,]*)\]")

Compilable = tuple[Callable[..., Any], Any, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compile, and for what."""

    topology: str = "v5e:2x2"
    """Generation and layout of the chips, such as v5e:4x4 or v6e:2x2."""
    chips: int | None = None
    """Use the first so many chips of the topology; all by default."""
    only: tuple[str, ...] = STEPS
    """Which steps, by space, method, objective and order, and which candidate operations with their gradients; all by
    default."""
    channels: int = 16
    """Width of the first stage."""
    cells: int = 1
    """Cells in each stage of NAS-Bench-201."""
    layers: int = 8
    """Layers of DARTS."""
    batch_size: int = 64
    """Images in a batch, on all chips together."""
    dtype: str = "float32"
    """Compute type."""
    lowering: str = "tpu"
    """Convolutions and poolings as the library writes them for a TPU, or as it does for a "cpu", to compare the two."""


def run(config: Config) -> dict[str, Any]:
    """Compiles the steps, and prints a line as soon as each is done.

    Args:
      config: what to compile, and for what.

    Returns:
      ``config``; ``device``, the kind of a chip; ``chips``; ``rows``, one for each step, with ``step``, its name;
      ``compile_s``; ``gflop`` and ``accessed_mb``, floating-point operations and bytes of memory access a chip and
      step, by XLA's cost analysis; ``hbm_mb``, the memory of a chip that arguments, results, temporaries and the
      program take, and ``temporaries_mb`` of it; and ``collectives``, by kind their ``count`` and ``mb`` of results a
      chip and step; or with ``error``, why it does not compile; and ``conclusion``, the table.

    Raises:
      UsageError: on ``only``, ``lowering`` or ``batch_size``; or on ``topology``, which cannot be described, or for
        which there is no ``libtpu``.
    """
    if config.lowering not in LOWERINGS:
        raise UsageError("lowering", f"{config.lowering!r} is unknown; known are {', '.join(LOWERINGS)}")
    for name in config.only:
        if name not in STEPS:
            raise UsageError("only", f"{name!r} is unknown; known are {', '.join(STEPS)}")
    devices = _devices(config)
    if config.batch_size % len(devices):
        raise UsageError("batch_size", f"must be a multiple of the {len(devices)} chips, not {config.batch_size}")
    rows: list[dict[str, Any]] = []
    for name in config.only:
        make = _search if name in SEARCHES else _retrain if name in RETRAININGS else _operation
        what = make(name, config)
        rows.append({"step": name, **_compiled(_as_for_cpu(what) if config.lowering == "cpu" else what, devices)})
        print(_line(rows[-1]), file=sys.stderr)
    head = f"{len(devices)} chips, {devices[0].device_kind}; batch {config.batch_size}, {config.dtype}"
    head += f", lowered as for a {config.lowering}"
    return {
        "config": dataclasses.asdict(config),
        "device": devices[0].device_kind,
        "chips": len(devices),
        "rows": rows,
        "conclusion": "\n".join([head, *map(_line, rows)]),
    }


def _devices(config: Config) -> list[Any]:
    # What the library would ask the machine for, were it a TPU's.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        devices = list(topologies.get_topology_desc(config.topology, platform="tpu").devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        first, *_ = str(error).splitlines()
        raise UsageError("topology", f"{config.topology!r} cannot be compiled for ({first})") from error
    if config.chips is not None and not 0 < config.chips <= len(devices):
        raise UsageError("chips", f"must be between 1 and the {len(devices)} of {config.topology}, not {config.chips}")
    return devices[: config.chips]


def _search(name: str, config: Config) -> Compilable:
    space, method, objective, order = SEARCHES[name]
    cells, dtype = _cells(space, config), config.dtype
    how = StepConfig(space, method, objective, order, channels=config.channels, cells=cells, dtype=dtype)
    create, step = make(how)
    return step, jax.eval_shape(create, jax.random.key(0)), batches(order, _batch(config))


def _retrain(name: str, config: Config) -> Compilable:
    space = get_space(name.split()[0])
    genotype, auxiliary_weight = RETRAININGS[name]
    net = network(
        space,
        space.parse(genotype),
        channels=config.channels,
        cells=_cells(space.name, config),
        num_classes=10,
        auxiliary=auxiliary_weight > 0,
        dtype=jnp.dtype(config.dtype),
    )
    tx = sgd(0.025, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)
    batch = _batch(config)
    state = jax.eval_shape(lambda key: TrainState.create(net, tx, batch[0].shape[1:], key), jax.random.key(0))
    return make_train_step(net, tx, auxiliary_weight=auxiliary_weight), state, batch


def _cells(space: str, config: Config) -> int:
    return getattr(config, _NUMBER_OF_CELLS.get(space, "cells"))


def _operation(name: str, config: Config) -> Compilable:
    """An operation of stride 1 and its gradients on the features of the first stage."""
    net = Ours(name, config.channels)
    x = jax.ShapeDtypeStruct((config.batch_size, 32, 32, config.channels), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)

    def step(variables: Any, x: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        def features(variables: Any, x: jax.Array) -> jax.Array:
            return net.apply(variables, x, mutable=["batch_stats"])[0]

        out, pull_back = jax.vjp(features, variables, x)
        of_variables, of_x = pull_back(out)
        return of_variables, {"out": out, "of_x": of_x}

    return step, variables, x


def _as_for_cpu(what: Compilable) -> Compilable:
    """The same, with every choice by platform made as on a CPU."""
    step, *arguments = what
    unchecked = [jax.export.DisabledSafetyCheck.platform()]
    exported = jax.export.export(jax.jit(step), platforms=["cpu"], disabled_checks=unchecked)(*arguments)
    return (exported.call, *arguments)


def _batch(config: Config) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((config.batch_size, 32, 32, 3), jnp.float32)
    return images, jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)


def _compiled(what: Compilable, devices: list[Any]) -> dict[str, Any]:
    step, *arguments = what
    parallel, replicated = data_parallel(step, devices)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), arguments)
    start = time.perf_counter()
    try:
        compiled = jax.jit(parallel, donate_argnums=0).lower(*placed).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0]}
    compile_s = time.perf_counter() - start
    # Every platform that compiles ahead of time tells both.
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    held += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return {
        "compile_s": compile_s,
        "gflop": cost["flops"] / 1e9,
        "accessed_mb": cost["bytes accessed"] / 1e6,
        "hbm_mb": held / 1e6,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "collectives": collectives(compiled.as_text() or ""),
    }


def collectives(text: str) -> dict[str, dict[str, float]]:
    """What the chips send each other in a step.

    Args:
      text: a compiled program.

    Returns:
      For each kind of collective operation that is in it, their ``count``, and ``mb`` of their results.

    Example:
      >>> collectives("%r = (f32[8,4]{1,0}, s32[2]) all-reduce(%a, %b), channel_id=1")
      {'all-reduce': {'count': 1, 'mb': 0.000136}}
    """
    found: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"count": 0, "mb": 0.0})
    for shapes, kind in _COLLECTIVE.findall(text):
        found[kind]["count"] += 1
        for _, bits, sides in _SHAPE.findall(shapes):
            found[kind]["mb"] += math.prod(int(side) for side in sides.split(",") if side) * int(bits) / 8e6
    return dict(found)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['step']:52} does not compile: {row['error']}"
    sent = [f"{found['count']} {kind} of {found['mb']:.2f} MB" for kind, found in row["collectives"].items()]
    figures = f"{row['gflop']:7.2f} GFLOP, {row['hbm_mb']:7.0f} MB HBM, {row['accessed_mb']:7.0f} MB accessed"
    return f"{row['step']:52} {figures}; {', '.join(sent) or 'nothing sent'}; compiles in {row['compile_s']:.0f} s"


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws the memory that each step takes of a chip.

    Args:
      result: what `run` returns.
      axes: to draw on.
    """
    rows = [row for row in result["rows"] if "error" not in row]
    axes.barh([row["step"] for row in rows], [row["hbm_mb"] for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel(f"MB of a chip ({result['chips']} x {result['device']})")
