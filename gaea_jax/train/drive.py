"""Drives a run from its first step to its last: reports, checkpoints, resume, signals, divergence."""

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gaea_jax import processes
from gaea_jax.checkpoint import Checkpoints
from gaea_jax.data import Stream
from gaea_jax.metrics import progress
from gaea_jax.train.folder import RunFolder
from gaea_jax.train.loop import Parallel, Step, compile_ahead, data_parallel, run
from gaea_jax.train.memory import give_back
from gaea_jax.train.signals import stop_on_signal
from gaea_jax.train.state import compiled_once

Record = dict[str, Any]

# Seconds between two looks at the clock, the signals and the loss.
PULSE_S = 1.0


class Interrupted(Exception):
    """A signal ended the run; its state is saved, where it has a folder.

    Attributes:
      step: number of completed steps.
      signal: number of the signal.
    """

    def __init__(self, step: int, signal: int):
        super().__init__(f"stopped at step {step} by signal {signal}")
        self.step = step
        self.signal = signal


class DivergedError(ArithmeticError):
    """Loss, gradient or state is not finite; the message names the steps and the last good checkpoint."""


class Run(NamedTuple):
    """A finished run.

    Attributes:
      state: its last state.
      records: all its reports, those before a resume included.
      wall_s: seconds it took, summed over resumes.
    """

    state: Any
    records: list[Record]
    wall_s: float


@flax.struct.dataclass
class _Tallied:
    """A state, and the sums of its metrics since the last report: no report shows where a run was cut."""

    state: Any
    sums: dict[str, jax.Array]
    count: jax.Array

    @property
    def step(self) -> jax.Array:
        return self.state.step


def drive(
    step: Step,
    create: Callable[[Any], Any],
    key: Any,
    source: Any,
    until: int,
    *,
    report: Callable[[Any, Record, Record | None], tuple[Record, str]],
    report_every: int,
    description: str,
    folder: RunFolder | None = None,
    resume: bool = False,
    loop: str = "auto",
    devices: Sequence[jax.Device] | None = None,
    parallel: Parallel = data_parallel,
    on_report: Callable[[Record], None] | None = None,
) -> Run:
    """Runs steps with a report and a checkpoint every so often.

    Args:
      step: ``step(state, batch) -> (state, metrics)``, pure.
      create: ``create(key)`` draws the state before the first step; pure. It runs while the step is compiled.
      key: what that takes.
      source: ``source(i) -> batch``, a pytree; or a `Stream`, whose place is in the checkpoints and whose threads end
        with the run.
      until: number of steps to have completed at the end.
      report: ``report(state, metrics, before) -> (record, text)``: adds to the mean metrics since the last report,
        whose record is ``before`` (None for the first), what is worth a line of ``metrics.jsonl``, and sums it up for
        the progress display. May not keep the state, which is donated.
      report_every: steps between two reports, each followed by a checkpoint.
      description: what is running, for the progress display.
      folder: where to write; None writes nothing.
      resume: continue from the newest checkpoint of the folder (from the first step, if there is none yet).
      loop: see `gaea_jax.train.run`.
      devices: the run is spread over these, those of all processes if there are several; all by default.
      parallel: how it is; by default each batch.
      on_report: called with every record.

    Returns:
      The `Run`.

    Raises:
      Interrupted: SIGINT or SIGTERM arrived, at any of the processes; the state was saved.
      DivergedError: loss, gradient or state is not finite; that state was not saved.
      LostProcessError: another process of the run ended.
      CheckpointError: the run cannot be resumed.
      UsageError: ``loop`` does not suit the source.
    """
    step, sharding = parallel(step, devices if devices is not None else jax.devices())
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    stream = source if isinstance(source, Stream) else None
    if stream:
        stream.place(replicated)
    else:
        source = processes.put(source, replicated)
    blank = stream.blank() if stream else None
    state = _placed(jax.eval_shape(create, key), sharding)
    metrics = jax.eval_shape(lambda state: step(state, source(state.step) if blank is None else blank)[1], state)
    sums, count = _placed(metrics, sharding), _placed(jax.ShapeDtypeStruct((), jnp.int32), replicated)

    def advance(tallied: _Tallied, batch: Any) -> tuple[_Tallied, dict[str, jax.Array]]:
        first = tallied.step % report_every == 0
        state, metrics = step(tallied.state, batch)
        sums = {name: jnp.where(first, value, tallied.sums[name] + value) for name, value in metrics.items()}
        return _Tallied(state, sums, jnp.where(first, 1, tallied.count + 1)), metrics

    def saved(tallied: _Tallied, wall_s: float) -> Any:
        return tallied, wall_s, stream.get_state() if stream else None

    with contextlib.ExitStack() as stack:
        if stream:
            stack.enter_context(stream)
        checkpoints = stack.enter_context(folder.checkpoints()) if folder else None
        steps = checkpoints.steps() if checkpoints and resume else []
        newest = processes.agreed(max(steps, default=0))[0][0]
        start = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            # Both take long to compile, and XLA does so on one thread.
            drawn = thread.submit(compiled_once(create), key)
            if stream is None and newest < until:
                compile_ahead(advance, _Tallied(state, sums, count), source, loop)
        # A copy, because the loop donates it: the source may hold the same key, and the caller may want the state
        # again. (`put` makes none where an array stays on its device.)
        state = processes.put(jax.tree.map(jnp.copy, drawn.result()), sharding)
        tallied = _Tallied(
            state, *jax.tree.map(lambda shape: jnp.zeros_like(shape, device=shape.sharding), (sums, count))
        )
        records: list[Record] = []
        before = 0.0
        if folder and checkpoints and resume:
            if newest:
                _, (tallied, before, place) = checkpoints.restore(saved(tallied, before), newest)
                if stream:
                    stream.set_state(place)
            reached = int(tallied.step)
            processes.first(lambda: folder.log.rewind(reached))
            records = folder.records()
        begun = done = int(tallied.step)
        stop = stack.enter_context(stop_on_signal())
        shown = stack.enter_context(progress(until, done, description)) if processes.is_first() else None
        stack.enter_context(processes.noticing_losses())
        pulse = 1
        while done < until:
            target = min(done + pulse, until, (done // report_every + 1) * report_every)
            began = time.monotonic()
            tallied, _ = run(advance, tallied, source, target, loop=loop)
            if done == begun:
                give_back()  # What compiling the step took.
            if not _finite(tallied):
                raise DivergedError(_diverged(done, target, checkpoints))
            pulse = max(1, round((target - done) * PULSE_S / (time.monotonic() - began)))
            done, wall_s = target, before + time.monotonic() - start
            if done == until or done % report_every == 0:
                # On the host, where a quotient is rounded alike for one run and for several.
                count = np.float32(tallied.count)
                means = {name: (np.asarray(total) / count).tolist() for name, total in tallied.sums.items()}
                record, text = report(tallied.state, means, records[-1] if records else None)
                record = {"step": done, **record, "wall_s": wall_s}
                if folder and checkpoints and processes.is_first():
                    folder.log.append(record)
                    checkpoints.save(done, saved(tallied, wall_s))
                records.append(record)
                if shown:
                    shown.update(done, text)
                if on_report:
                    on_report(record)
            everyone = processes.agreed(stop.signal, pulse)
            signal, pulse = max(number for number, _ in everyone), everyone[0][1]
            if signal and done < until:
                if checkpoints and processes.is_first() and done not in checkpoints.steps():
                    checkpoints.save(done, saved(tallied, wall_s))
                raise Interrupted(done, signal)
    return Run(tallied.state, records, before + time.monotonic() - start)


def restored(step: Step, create: Callable[[Any], Any], key: Any, source: Any, folder: RunFolder) -> Any:
    """The state that a run had last saved.

    Args:
      step: as for `drive`, of a run that is neither streamed nor of several searches.
      create: as for `drive`.
      key: as for `drive`.
      source: as for `drive`.
      folder: of the run, which has ended: what a save has left unfinished is removed.

    Returns:
      The state.

    Raises:
      CheckpointError: there is no checkpoint, or it is of another run or damaged.
    """
    state = compiled_once(create)(key)
    metrics = jax.eval_shape(lambda state: step(state, source(state.step))[1], state)
    sums = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), metrics)
    like = _Tallied(state, sums, jnp.int32(0))
    with folder.checkpoints() as checkpoints:
        _, (tallied, _, _) = checkpoints.restore((like, 0.0, None))
    return tallied.state


def _placed(shapes: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda shape: shape.update(sharding=sharding), shapes)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def _diverged(done: int, target: int, checkpoints: Checkpoints | None) -> str:
    steps = checkpoints.steps() if checkpoints else []
    where = f"step {target}" if target == done + 1 else f"steps {done + 1} to {target}"
    kept = f"the last good checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint"
    return f"loss, gradient or state is not finite at {where}; {kept}; try a smaller learning rate"
