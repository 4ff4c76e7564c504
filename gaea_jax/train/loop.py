"""Runs a step many times: one dispatch a step, or all steps in one compiled loop."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gaea_jax.data import Stream
from gaea_jax.errors import UsageError

State = TypeVar("State")
Step = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
# A step and devices to the step that is spread over them, and the sharding of its state.
Parallel = Callable[[Step, Sequence[jax.Device]], tuple[Step, NamedSharding]]

LOOPS = ("auto", "python", "scan")


def run(
    step: Step, state: State, source: Callable[[Any], Any], until: int, *, loop: str = "auto"
) -> tuple[State, dict[str, jax.Array]]:
    """Steps until ``state.step == until``.

    Both loops run the same step on the same batches; they agree within float32 tolerance, and a run that is cut and
    continued is bitwise the unbroken one as long as it stays with one kind of loop.

    Args:
      step: ``step(state, batch) -> (state, metrics)``, pure; ``state.step`` counts completed steps. Keep one function
        for a whole run: it is compiled once for each.
      state: a pytree; its buffers are donated, so the caller's are gone afterwards, and no array of the source may be
        one of them.
      source: ``source(i) -> batch``. For ``"scan"`` it has to be pure in ``i`` and a pytree (such as the sources of
        `gaea_jax.data` for images in memory, or a `jax.tree_util.Partial`).
      until: number of steps to have completed at the end, more than ``state.step``.
      loop: ``"python"`` dispatches step by step; ``"scan"`` runs all in one compiled loop, which takes a tenth less
        time on CPU, where each call of a program asks the system for its memory anew; ``"auto"`` is ``"scan"``, but
        ``"python"`` for a `Stream`. The gradients of convolutions that are not those of `gaea_jax.nets.ops` are many
        times slower inside a loop on CPU (jax-ml/jax#12868): ``"python"`` is for these.

    Returns:
      The state, and the metrics averaged over the steps made.

    Raises:
      UsageError: unknown loop, ``"scan"`` with a `Stream`, or nothing to do.
    """
    start = int(state.step)  # type: ignore[attr-defined]
    if until <= start:
        raise UsageError("until", f"must be more than the {start} steps already made, got {until}")
    if _compiled(loop, source):
        return _scan(step, state, source, until - start)
    totals = None
    for i in range(start, until):
        state, metrics = _advance(step, state, source(i))
        totals = metrics if totals is None else _add(totals, metrics)
    return state, jax.tree.map(lambda total: total / (until - start), totals)


def compile_ahead(step: Step, state: State, source: Callable[[Any], Any], loop: str) -> jax.stages.Compiled:
    """Compiles what `run` is going to run.

    Args:
      step: the very function.
      state: shapes, types and shardings of the state.
      source: not a `Stream`.
      loop: as for `run`.

    Returns:
      The program, of a step or of a loop of them.

    Raises:
      UsageError: unknown loop.
    """
    if _compiled(loop, source):
        return _scan.lower(step, state, source, 1).compile()
    return _advance.lower(step, state, source(0)).compile()


def _compiled(loop: str, source: Callable[[Any], Any]) -> bool:
    """Whether the loop is to be a compiled one."""
    if loop not in LOOPS:
        raise UsageError("loop", f"{loop!r} is unknown; known are {', '.join(LOOPS)}")
    stream = isinstance(source, Stream)
    if loop == "scan" and stream:
        raise UsageError("loop", '"scan" needs all images in memory; for a stream it is "python" or "auto"')
    return loop == "scan" or (loop == "auto" and not stream)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(step: Step, state: Any, batch: Any) -> tuple[Any, Any]:
    return step(state, batch)


@jax.jit
def _add(totals: Any, metrics: Any) -> Any:
    return jax.tree.map(jnp.add, totals, metrics)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _scan(step: Step, state: Any, source: Any, count: int) -> tuple[Any, Any]:
    # The bound is traced, so that chunks of any length share one compiled program.
    shapes = jax.eval_shape(lambda state: step(state, source(state.step))[1], state)
    totals = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def body(_: Any, carry: Any) -> Any:
        state, totals = carry
        state, metrics = step(state, source(state.step))
        return state, jax.tree.map(jnp.add, totals, metrics)

    state, totals = jax.lax.fori_loop(0, count, body, (state, totals))
    return state, jax.tree.map(lambda total: total / count, totals)


def split_over(devices: Sequence[jax.Device]) -> NamedSharding:
    """The sharding that spreads the first axis of arrays over devices.

    Args:
      devices: the devices; their number divides that axis.

    Returns:
      The sharding.
    """
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("data"))


def data_parallel(step: Step, devices: Sequence[jax.Device]) -> tuple[Step, NamedSharding]:
    """Spreads the batch of a step over devices; state and result are the same on all of them.

    Batch statistics and gradients are taken over the whole batch, so that the result is the single-device one within
    float tolerance.

    Args:
      step: ``step(state, batch) -> (state, metrics)``.
      devices: the devices; their number divides the batch size.

    Returns:
      The step, and the sharding that state and source have to be put to (`jax.device_put`; a `Stream` by its ``place``)
      before the first one.
    """
    split = split_over(devices)
    replicated = NamedSharding(split.mesh, PartitionSpec())

    def sharded(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        state, metrics = step(state, jax.lax.with_sharding_constraint(batch, split))
        return jax.lax.with_sharding_constraint(state, replicated), metrics

    # Compiled as a whole, so that it is traced once, for the shapes of its metrics and for the loop alike.
    return jax.jit(sharded), replicated
