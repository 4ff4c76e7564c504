"""Drives a run from its first step to its last: reports, checkpoints, resume, signals, divergence."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from gaea_jax.checkpoint import Checkpoints
from gaea_jax.metrics import progress
from gaea_jax.train.folder import RunFolder
from gaea_jax.train.loop import Step, data_parallel, run
from gaea_jax.train.signals import stop_on_signal

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
    """Loss or gradient is not finite; the message names the steps and the last good checkpoint."""


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


def drive(
    step: Step,
    state: Any,
    source: Any,
    until: int,
    *,
    report: Callable[[Any, Record], tuple[Record, str]],
    report_every: int,
    description: str,
    folder: RunFolder | None = None,
    resume: bool = False,
    loop: str = "auto",
    devices: Sequence[jax.Device] | None = None,
    on_report: Callable[[Record], None] | None = None,
) -> Run:
    """Runs steps with a report and a checkpoint every so often.

    Args:
      step: ``step(state, batch) -> (state, metrics)``, pure.
      state: the state before the first step; donated.
      source: ``source(i) -> batch``, a pytree.
      until: number of steps to have completed at the end.
      report: ``report(state, metrics) -> (record, text)``: adds to the mean metrics since the last report what is worth
        a line of ``metrics.jsonl``, and sums it up for the progress display.
      report_every: steps between two reports, each followed by a checkpoint.
      description: what is running, for the progress display.
      folder: where to write; None writes nothing.
      resume: continue from the newest checkpoint of the folder (from the first step, if there is none yet).
      loop: see `gaea_jax.train.run`.
      devices: spread each batch over these; all local ones by default.
      on_report: called with every record.

    Returns:
      The `Run`.

    Raises:
      Interrupted: SIGINT or SIGTERM arrived; the state was saved.
      DivergedError: loss or gradient is not finite.
      CheckpointError: the run cannot be resumed.
    """
    step, sharding = data_parallel(step, devices if devices is not None else jax.local_devices())
    state, source = jax.device_put((state, source), sharding)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(folder.checkpoints()) if folder else None
        records: list[Record] = []
        if folder and checkpoints and resume:
            if checkpoints.steps():
                _, state = checkpoints.restore(state)
            folder.log.rewind(int(state.step))
            records = folder.records()
        done = int(state.step)
        before = records[-1]["wall_s"] if records else 0.0
        start = time.monotonic()
        stop = stack.enter_context(stop_on_signal())
        shown = stack.enter_context(progress(until, done, description))
        pulse, since = 1, done
        sums: dict[str, float] = {}
        while done < until:
            target = min(done + pulse, until, (done // report_every + 1) * report_every)
            began = time.monotonic()
            state, metrics = run(step, state, source, target, loop=loop)
            means = {name: float(value) for name, value in metrics.items()}
            pulse = max(1, round((target - done) * PULSE_S / (time.monotonic() - began)))
            if not all(math.isfinite(value) for value in means.values()):
                raise DivergedError(_diverged(done, target, checkpoints))
            sums = {name: sums.get(name, 0.0) + value * (target - done) for name, value in means.items()}
            done = target
            if done == until or done % report_every == 0:
                record, text = report(state, {name: value / (done - since) for name, value in sums.items()})
                seconds = time.monotonic() - start
                record = {"step": done, **record, "wall_s": before + seconds}
                if folder and checkpoints:
                    folder.log.append(record)
                    checkpoints.save(done, state)
                records.append(record)
                shown.update(done, text)
                if on_report:
                    on_report(record)
                since, sums = done, {}
            if stop.requested and done < until:
                if checkpoints and done not in checkpoints.steps():
                    checkpoints.save(done, state)
                raise Interrupted(done, stop.signal)
    return Run(state, records, before + time.monotonic() - start)


def _diverged(done: int, target: int, checkpoints: Checkpoints | None) -> str:
    steps = checkpoints.steps() if checkpoints else []
    where = f"step {target}" if target == done + 1 else f"steps {done + 1} to {target}"
    kept = f"the last good checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint"
    return f"loss or gradient is not finite at {where}; {kept}; try a smaller learning rate"
