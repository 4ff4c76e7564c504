import dataclasses
import itertools
import json
import signal
import threading
import time
import types

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.checkpoint import CheckpointError
from gaea_jax.data import Augmentation, Split, StoredSplit, epoch_batches
from gaea_jax.errors import UsageError
from gaea_jax.train import DivergedError, Interrupted
from gaea_jax.train import drive as drive_module
from gaea_jax.train.drive import drive
from gaea_jax.train.folder import RunFolder

IDENTITY = {"--seed": 0}
LOOPS = ("python", "scan")


@flax.struct.dataclass
class State:
    step: jax.Array
    w: jax.Array
    momentum: jax.Array
    key: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """Batches from the step alone; from step `broken` on they are infinite."""

    key: jax.Array
    broken: int = dataclasses.field(default=1000, metadata={"static": True})

    def __call__(self, step):
        x = jax.random.normal(jax.random.fold_in(self.key, step), (8, 4))
        return jnp.where(step + 1 >= self.broken, jnp.inf, x)


class Records(list):
    """Stored images; those of a number of `broken` or more cannot be read."""

    broken = 1000

    def __getitems__(self, keys):
        if max(keys) >= self.broken:
            raise OSError("the disk is gone")
        return [self[key] for key in keys]


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (40, 2, 2, 1), np.uint8), np.zeros(40, np.int32))


@pytest.fixture
def stored(split):
    records = Records({"image": image, "label": label} for image, label in zip(*split, strict=True))
    return StoredSplit("noise", "train", records, (2, 2, 1))


def images(split, seed=5):
    """Batches of eight, from memory or from disk; five steps are an epoch."""
    return epoch_batches(split, jax.random.key(seed), 8, Augmentation(flip=True, pad=1), (0.5,), (0.3,))


def on_images(state, batch):
    return regression(state, batch[0].reshape(8, 4))


def assert_threads_end():
    end = time.monotonic() + 10
    while any(thread.name.startswith("grain") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def make_state():
    return State(jnp.zeros((), jnp.int32), jnp.ones(4), jnp.zeros(4), jax.random.key(5))


def regression(state, x):
    def loss(w):
        return jnp.mean((x @ w - x.sum(axis=1) * 0.3) ** 2)

    value, grad = jax.value_and_grad(loss)(state.w)
    momentum = 0.9 * state.momentum + grad
    metrics = {"loss": value, "gradient_norm": jnp.linalg.norm(grad)}
    return State(state.step + 1, state.w - 0.05 * momentum, momentum, state.key), metrics


def report(state, means, before):
    return {**means, "w": state.w.tolist()}, f"loss {means['loss']:.3f}"


def same(state):
    return state


def driven(until, *, step=regression, source=None, report_every=3, **options):
    state = make_state()
    # A source may share arrays with the state.
    source = source or Source(state.key)
    return drive(
        step, same, state, source, until, report=report, report_every=report_every, description="test", **options
    )


def without_clock(records):
    return [{name: value for name, value in record.items() if name != "wall_s"} for record in records]


@pytest.fixture
def cut_at(monkeypatch):
    """Lets a signal come right after a step; the clock is taken out, so that every step is looked at."""
    monkeypatch.setattr(drive_module, "PULSE_S", 0.0)

    def at(step, number=signal.SIGTERM):
        def run(*args, **options):
            state, metrics = original(*args, **options)
            if int(state.step) == step:
                signal.raise_signal(number)
            return state, metrics

        original = drive_module.run
        monkeypatch.setattr(drive_module, "run", run)
        return lambda: monkeypatch.setattr(drive_module, "run", original)

    return at


@pytest.mark.parametrize("loop", LOOPS)
def test_the_step_is_compiled_once_and_not_for_a_finished_run(tmp_path, caplog, loop):
    def compiled():
        return [text for text in caplog.messages if text.startswith(f"Finished XLA compilation of jit({program})")]

    program = {"python": "_advance", "scan": "_scan"}[loop]
    folder = RunFolder.create(tmp_path / "run", {}, IDENTITY)
    with jax.log_compiles():
        first = driven(4, folder=folder, loop=loop)
        assert len(compiled()) == 1
        again = driven(4, folder=folder, loop=loop, resume=True)
        assert len(compiled()) == 1
    chex.assert_trees_all_equal(again.state, first.state)


@pytest.mark.parametrize("loop", LOOPS)
def test_reports_come_at_their_steps_with_the_means_since_the_last(tmp_path, loop):
    seen, state, losses = [], make_state(), []
    step, source = jax.jit(regression), Source(state.key)
    for i in range(8):
        state, metrics = step(state, source(i))
        losses.append(float(metrics["loss"]))
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    done = driven(8, folder=folder, on_report=seen.append, loop=loop)
    assert [record["step"] for record in done.records] == [3, 6, 8]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])]
    np.testing.assert_allclose([record["loss"] for record in done.records], expected, rtol=1e-5)
    np.testing.assert_allclose(done.state.w, state.w, rtol=1e-5)
    np.testing.assert_allclose(done.records[-1]["w"], state.w, rtol=1e-5)
    clock = [0.0, *(record["wall_s"] for record in done.records), done.wall_s]
    assert clock == sorted(clock)
    assert all(a is b for a, b in zip(seen, done.records, strict=True))
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert without_clock(written) == without_clock(done.records)
    assert folder.checkpoints().steps() == [3, 6, 8]


def test_nothing_is_written_without_a_folder_and_the_state_passed_in_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = make_state()
    drive(regression, same, state, Source(state.key), 2, report=report, report_every=1, description="test")
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(state.w, np.ones(4))


def test_how_often_the_clock_is_looked_at_changes_no_bit(monkeypatch):
    whole = driven(8)
    monkeypatch.setattr(drive_module, "PULSE_S", 0.0)
    stepwise = driven(8)
    chex.assert_trees_all_equal(stepwise.state, whole.state)
    assert without_clock(stepwise.records) == without_clock(whole.records)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_is_traced_once(loop):
    traced = []

    def counting(state, x):
        traced.append(x)
        return regression(state, x)

    driven(8, step=counting, loop=loop)
    assert len(traced) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_cut_at_any_step_and_resumed_is_bitwise_the_unbroken_one(tmp_path, cut_at, loop):
    whole = driven(8, loop=loop)
    for k in range(1, 8):
        folder = RunFolder.create(tmp_path / str(k), {}, IDENTITY)
        mend = cut_at(k)
        with pytest.raises(Interrupted) as caught:
            driven(8, folder=folder, loop=loop)
        assert (caught.value.step, caught.value.signal) == (k, signal.SIGTERM)
        mend()
        folder = RunFolder.reopen(folder.path, IDENTITY)
        done = driven(8, folder=folder, loop=loop, resume=True)
        chex.assert_trees_all_equal(done.state, whole.state)
        assert without_clock(done.records) == without_clock(whole.records)
        assert [record["step"] for record in folder.records()] == [3, 6, 8]


def test_the_seconds_before_a_cut_count(tmp_path, monkeypatch, cut_at):
    def ticking():
        monkeypatch.setattr(drive_module, "time", types.SimpleNamespace(monotonic=itertools.count().__next__))

    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    mend = cut_at(4, signal.SIGINT)
    ticking()
    with pytest.raises(Interrupted, match="stopped at step 4 by signal 2"):
        driven(8, folder=folder)
    mend()
    ticking()
    resumed = driven(8, folder=folder, resume=True)
    ticking()
    whole = driven(8)
    assert resumed.records == whole.records
    assert resumed.wall_s == whole.wall_s > whole.records[-1]["wall_s"]


def test_a_signal_during_a_report_stops_the_run_without_a_folder_too():
    with pytest.raises(Interrupted) as caught:
        driven(8, on_report=lambda record: signal.raise_signal(signal.SIGTERM))
    assert caught.value.step == 3


def test_a_signal_in_the_last_step_does_not_undo_the_run(cut_at):
    cut_at(8)
    assert int(driven(8).state.step) == 8


def test_reports_after_the_checkpoint_are_made_again(tmp_path):
    """As after a kill between a report and its checkpoint: the report is there, the state is not."""
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    whole = driven(6, folder=folder)
    folder.log.append({"step": 9, "loss": -1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    done = driven(11, folder=folder, resume=True)
    assert [record["step"] for record in folder.records()] == [3, 6, 9, 11]
    assert done.records[2]["loss"] > 0
    assert without_clock(done.records[:2]) == without_clock(whole.records)


def test_without_a_checkpoint_yet_a_resumed_run_starts_at_its_first_step(tmp_path):
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    folder.log.append({"step": 3, "loss": -1.0})
    done = driven(4, folder=folder, resume=True)
    assert [record["step"] for record in folder.records()] == [3, 4]
    chex.assert_trees_all_equal(done.state, driven(4).state)


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    done, again = driven(5, folder=folder), driven(5, folder=folder, resume=True)
    chex.assert_trees_all_equal(again.state, done.state)
    assert again.records == done.records


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    driven(3, folder=RunFolder.create(tmp_path, {}, IDENTITY))
    with pytest.raises(CheckpointError, match="--seed was 0, now 1"):
        driven(6, folder=RunFolder(tmp_path, {"--seed": 1}), resume=True)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_diverged_run_names_the_step_and_keeps_its_last_good_checkpoint(tmp_path, monkeypatch, loop):
    monkeypatch.setattr(drive_module, "PULSE_S", 0.0)
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    message = "is not finite at step 7; the last good checkpoint is that of step 6; try a smaller learning rate"
    with pytest.raises(DivergedError, match=message):
        driven(20, folder=folder, loop=loop, source=Source(jax.random.key(5), broken=7))
    with folder.checkpoints() as checkpoints:
        assert checkpoints.steps() == [3, 6]
    assert [record["step"] for record in folder.records()] == [3, 6]


def test_steps_that_ran_together_are_named_together(monkeypatch):
    monkeypatch.setattr(drive_module, "PULSE_S", 1e6)
    with pytest.raises(DivergedError, match="not finite at steps 4 to 6; there is no checkpoint"):
        driven(9, source=Source(jax.random.key(5), broken=5))


def test_a_state_that_is_not_finite_is_not_saved_although_the_loss_still_is(tmp_path):
    def overflowing(state, x):
        state, metrics = regression(state, x)
        return state.replace(w=jnp.where(state.step == 6, jnp.nan, state.w)), metrics

    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    with pytest.raises(DivergedError, match="the last good checkpoint is that of step 3"):
        driven(9, step=overflowing, folder=folder)
    with folder.checkpoints() as checkpoints:
        assert checkpoints.steps() == [3]


def test_by_default_the_batch_is_spread_over_all_devices():
    eight, one = driven(4, devices=None), driven(4)
    assert eight.state.w.sharding.device_set == set(jax.devices())
    assert eight.state.w.is_fully_replicated
    np.testing.assert_allclose(eight.state.w, one.state.w, rtol=1e-5)


def test_a_streamed_run_cut_at_any_step_and_resumed_is_bitwise_the_unbroken_one(tmp_path, cut_at, split, stored):
    whole = driven(8, step=on_images, source=images(split), loop="python")
    for k in range(1, 8):
        folder = RunFolder.create(tmp_path / str(k), {}, IDENTITY)
        mend = cut_at(k)
        with pytest.raises(Interrupted):
            driven(8, step=on_images, source=images(stored), folder=folder)
        assert_threads_end()
        mend()
        stream = images(stored)
        done = driven(8, step=on_images, source=stream, folder=folder, resume=True)
        assert_threads_end()
        chex.assert_trees_all_equal(done.state, whole.state)
        assert without_clock(done.records) == without_clock(whole.records)


def test_the_place_of_a_stream_is_in_the_checkpoint(tmp_path, stored, monkeypatch):
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    driven(4, step=on_images, source=images(stored), folder=folder)
    stream, places = images(stored), []
    monkeypatch.setattr(stream, "set_state", lambda state: places.append(state["iterator"]))
    driven(5, step=on_images, source=stream, folder=folder, resume=True)
    assert places == [{"next_index": 4}]


def test_a_checkpoint_with_a_stream_of_other_batches_is_refused(tmp_path, split, stored):
    folder = RunFolder.create(tmp_path, {}, IDENTITY)
    driven(3, step=on_images, source=images(stored), folder=folder)
    with pytest.raises(UsageError, match="state: is of a stream with another key; it must be of this one"):
        driven(6, step=on_images, source=images(stored, seed=6), folder=folder, resume=True)
    with pytest.raises(CheckpointError, match="batch size'] was"):
        driven(6, step=on_images, source=images(split), folder=folder, resume=True)
    assert_threads_end()


def test_the_threads_end_with_a_run_that_fails(stored):
    def broken(state, batch):
        state, metrics = on_images(state, batch)
        return state.replace(w=jnp.where(state.step == 2, jnp.nan, state.w)), metrics

    with pytest.raises(DivergedError):
        driven(6, step=broken, source=images(stored))
    assert_threads_end()
    with pytest.raises(UsageError, match='loop: "scan" needs all images in memory'):
        driven(6, step=on_images, source=images(stored), loop="scan")
    stored.records.broken = 39
    with pytest.raises(OSError, match="the disk is gone"):
        driven(6, step=on_images, source=images(stored))
    assert_threads_end()


def test_a_streamed_step_is_traced_once_and_spread_over_all_devices(split, stored):
    traced = []

    def counting(state, batch):
        traced.append(batch)
        return on_images(state, batch)

    eight = driven(4, step=counting, source=images(stored), devices=None)
    assert len(traced) == 1
    one = driven(4, step=on_images, source=images(split))
    assert eight.state.w.sharding.device_set == set(jax.devices())
    np.testing.assert_allclose(eight.state.w, one.state.w, rtol=1e-5)
