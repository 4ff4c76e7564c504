import gc
import io
import json
import re
import struct
import sys
import types

import chex
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from gaea_jax import metrics
from gaea_jax.errors import UsageError


@pytest.fixture
def log(tmp_path):
    return metrics.MetricsLog(tmp_path / "metrics.jsonl")


def steps(log):
    return [record["step"] for record in metrics.read_metrics(log.path)]


def test_what_is_appended_is_read_back(log):
    records = [{"step": 0, "loss": 2.3, "genotype": "|a~0|"}, {"step": 50, "table": {"cifar10": {"rank": 3}}}]
    for record in records:
        log.append(record)
    assert metrics.read_metrics(log.path) == records


def test_a_report_is_in_the_file_when_append_returns(log):
    log.append({"step": 1})
    assert log.path.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_arrays_become_lists_and_scalars_become_numbers(log, make):
    mixture = [[0.25, 0.75], [0.5, 0.5]]
    log.append(
        {
            "step": make(300),
            "loss": make(1.5),
            "best": make(True),
            "mixture": {"cell": make(mixture)},
            "entropy": [make(1.0)],
        }
    )
    [record] = metrics.read_metrics(log.path)
    assert record == {"step": 300, "loss": 1.5, "best": True, "mixture": {"cell": mixture}, "entropy": [1.0]}
    assert type(record["step"]) is int and type(record["best"]) is bool


def test_half_precision_numbers_are_converted(log):
    log.append({"step": 1, "a": jnp.bfloat16(1.5), "b": np.float16(0.5), "c": jnp.ones(2, jnp.bfloat16)})
    assert metrics.read_metrics(log.path) == [{"step": 1, "a": 1.5, "b": 0.5, "c": [1.0, 1.0]}]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -jnp.inf, np.float32("nan")])
@pytest.mark.parametrize("where", ["alone", "nested"])
def test_a_number_that_is_not_finite_is_refused_by_name_and_nothing_is_written(log, bad, where):
    record = {"step": 1, "loss": bad} if where == "alone" else {"step": 1, "mixture": {"cell": [[0.5, bad]]}}
    name = "record.loss" if where == "alone" else "record.mixture.cell[0][1]"
    with pytest.raises(ValueError, match=re.escape(name)):
        log.append(record)
    assert not log.path.exists()


@pytest.mark.parametrize("record", [{}, {"step": 1.0}, {"step": True}, {"step": "1"}, {"step": np.ones(2)}])
def test_a_report_needs_a_whole_number_of_steps(log, record):
    with pytest.raises(ValueError, match="step must be a whole number"):
        log.append(record)
    assert not log.path.exists()


def test_a_value_that_json_cannot_hold_is_refused(log):
    with pytest.raises(TypeError, match=re.escape("record.when is a set")):
        log.append({"step": 1, "when": {1, 2}})
    assert not log.path.exists()


def test_a_torn_last_line_is_ignored_at_every_length(log):
    log.append({"step": 1, "loss": 0.5})
    whole = log.path.read_bytes()
    second = b'{"step": 2, "loss": 0.25}'
    for length in range(len(second)):
        log.path.write_bytes(whole + second[:length])
        assert steps(log) == [1]
    log.path.write_bytes(whole + second)
    assert steps(log) == [1, 2]


@pytest.mark.parametrize("broken", [b'{"step": 2, "lo', b"[1, 2]", b'{"loss": 1.0}', b"", b"\xff\xfe"])
def test_any_other_broken_line_is_named(log, broken):
    log.path.write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n')
    with pytest.raises(UsageError, match=f"{re.escape(str(log.path))}, line 2 ") as caught:
        metrics.read_metrics(log.path)
    assert caught.value.argument == "run"
    before = log.path.read_bytes()
    with pytest.raises(UsageError):
        log.rewind(1)
    assert log.path.read_bytes() == before


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist") as caught:
        metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert caught.value.argument == "run"


@hypothesis.given(done=st.integers(0, 6), checkpoint=st.integers(-1, 7), torn=st.integers(0, len(b'{"step": 9}') - 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_a_killed_run_that_rewinds_and_goes_on_leaves_the_file_of_an_unbroken_one(
    tmp_path_factory, done, checkpoint, torn
):
    log = metrics.MetricsLog(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    for step in range(done):
        log.append({"step": step, "loss": step / 3})
    with open(log.path, "ab") as file:
        file.write(b'{"step": 9}'[:torn])
    log.rewind(checkpoint)
    for step in range(min(done, checkpoint + 1), 7):
        log.append({"step": step, "loss": step / 3})
    lines = [json.dumps({"step": step, "loss": step / 3}) + "\n" for step in range(7)]
    assert log.path.read_text() == "".join(lines)
    assert [path.name for path in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_rewind_that_is_cut_short_leaves_the_old_file(log, monkeypatch):
    for step in range(3):
        log.append({"step": step})

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.rewind(0)
    assert steps(log) == [0, 1, 2]


def test_rewinding_a_file_that_is_not_there_makes_none(log):
    log.rewind(10)
    assert not log.path.exists()


TRUTH = {"cifar10": {"test": 93.5, "rank": 167}}
REPORT = {
    "step": 30,
    "loss": 2.25,
    "entropy": {"normal": 1.25, "reduce": 1.5},
    "mixture": {"cell": [[0.25, 0.75], [0.5, 0.5]]},
    "genotype": "|none~0|",
    "table": TRUTH,
    "valid_accuracy": None,
    "wall_s": 47.0,
}


def events(file):
    """The events of a file, whose checksums must be right."""
    data = file.read_bytes()
    while data:
        header, (length,) = data[:8], struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(header)
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(body)
        yield Event.FromString(body)
        data = data[16 + length :]


def curves(folder, *, sessions):
    """What TensorBoard shows: for each tag (step, wall time, value).

    Its two readers drop what a resumed run says again by different rules: at the start of a session all from its step
    on, or at each event those of its tag from its step on.
    """
    shown = {}
    for file in sorted(folder.iterdir()):
        assert "tfevents" in file.name
        for index, event in enumerate(events(file)):
            assert (event.file_version == "brain.Event:2") == (index == 0)
            if sessions and event.session_log.status == SessionLog.START:
                shown = {tag: [point for point in points if point[0] < event.step] for tag, points in shown.items()}
            for value in event.summary.value:
                points = shown.setdefault(value.tag, [])
                if not sessions:
                    points[:] = [point for point in points if point[0] < event.step]
                points.append((event.step, event.wall_time, value))
    return shown


@pytest.fixture
def events_log(tmp_path):
    return metrics.MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")


def test_every_value_of_a_report_is_in_the_events_when_append_returns(events_log):
    events_log.append(REPORT)
    shown = curves(events_log.path.parent / "tensorboard", sessions=True)
    (values,) = zip(*((points[0][2],) for points in shown.values()), strict=True)
    assert all(len(points) == 1 and points[0][0] == 30 for points in shown.values())
    scalars = {value.tag: value.simple_value for value in values if value.WhichOneof("value") == "simple_value"}
    assert scalars == {
        "loss": 2.25,
        "entropy/normal": 1.25,
        "entropy/reduce": 1.5,
        "table/cifar10/test": 93.5,
        "table/cifar10/rank": 167,
        "wall_s": 47.0,
    }
    (text,) = (value for value in values if value.metadata.plugin_data.plugin_name == "text")
    assert text.tag.startswith("genotype") and text.tensor.string_val == [b"`|none~0|`"]
    (histogram,) = (value for value in values if value.WhichOneof("value") == "histo")
    assert histogram.tag == "mixture/cell"
    assert (histogram.histo.num, histogram.histo.min, histogram.histo.max) == (4, 0.25, 0.75)
    assert sum(histogram.histo.bucket) == 4 and len(histogram.histo.bucket) <= metrics.BARS + 1
    assert metrics.read_metrics(events_log.path) == [REPORT]


def test_tables_that_are_flat_ragged_or_of_texts_have_their_form(events_log):
    events_log.append({"step": 1, "flat": [[0.25] * 4], "ragged": [[1.0], [0.5, 0.5]], "cells": ["a", "b"], "none": []})
    shown = curves(events_log.path.parent / "tensorboard", sessions=True)
    assert {tag: points[0][2].histo.num for tag, points in shown.items()} == {
        "flat": 4,
        "ragged": 3,
        "cells/text_summary": 0,
    }
    assert shown["cells/text_summary"][0][2].tensor.string_val == [b'`["a", "b"]`']


@pytest.mark.parametrize("sessions", [True, False])
@pytest.mark.parametrize("events_before", [True, False])
def test_a_resumed_run_shows_every_step_once_and_no_pause(tmp_path, monkeypatch, sessions, events_before):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "time", lambda: now[0])
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    first = metrics.MetricsLog(path, folder if events_before else None)
    for step in (1, 2, 3, 4):
        first.append({"step": step, "loss": 1.0 / step, "wall_s": 10.0 * step})
    now[0] = 9000.0
    second = metrics.MetricsLog(path, folder)
    second.rewind(2)
    for step in (3, 4, 5):
        second.append({"step": step, "loss": 2.0 / step, "wall_s": 10.0 * step})
    points = curves(folder, sessions=sessions)["loss"]
    assert [step for step, _, _ in points] == [1, 2, 3, 4, 5]
    expected = [1.0, 1 / 2, 2 / 3, 2 / 4, 2 / 5]
    np.testing.assert_allclose([value.simple_value for _, _, value in points], expected, rtol=1e-6)
    assert np.diff([when for _, when, _ in points]).tolist() == [10.0] * 4
    assert points[1][1] == 9000.0
    assert len(list(folder.iterdir())) == 1 + events_before


def test_a_run_that_resumes_without_a_report_starts_its_events_anew(tmp_path):
    for step in (1, 2):
        log = metrics.MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
        log.rewind(0)
        log.append({"step": step})
        log.append({"step": 5, "loss": float(step)})
    shown = curves(tmp_path / "tensorboard", sessions=True)
    assert [(step, value.simple_value) for step, _, value in shown["loss"]] == [(5, 2.0)]


def test_without_tensorboard_there_are_no_events_and_a_refused_report_leaves_none(tmp_path, log, events_log):
    log.append({"step": 1})
    with pytest.raises(ValueError, match="finite"):
        events_log.append({"step": 2, "loss": float("nan")})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match="pip install tensorboardX") as caught:
        metrics.MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    assert caught.value.argument == "tensorboard"
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_log_closes_its_files(tmp_path):
    log = metrics.MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.append({"step": 1})
    handle = log._events._writer._writer
    del log
    gc.collect()
    assert handle.closed


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [0.0]
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_give_position_rate_and_time_left(clock, capsys):
    with metrics.progress(1000, description="search") as shown:
        clock[0] = 50.0
        shown.update(100, "loss 1.63  acc 41.2 %")
        clock[0] = 60.0
        shown.update(200, "loss 1.50")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "search   100/1000  2 steps/s  0:07:30 left  loss 1.63  acc 41.2 %",
        # The 50 seconds up to the first report held the compilation; they do not slow the rate any more.
        "search   200/1000  10 steps/s  0:01:20 left  loss 1.50",
    ]


def test_a_resumed_run_counts_only_its_own_steps(clock, capsys):
    with metrics.progress(1000, start=900, description="retrain") as shown:
        clock[0] = 10.0
        shown.update(950, "")
    assert capsys.readouterr().err == "retrain   950/1000  5 steps/s  0:00:10 left\n"


def test_the_rate_follows_the_last_reports(clock, capsys):
    with metrics.progress(10_000) as shown:
        for report in range(1, 21):
            clock[0] += 100.0 if report <= 10 else 1.0
            shown.update(report, "")
    assert " 1 steps/s " in capsys.readouterr().err.splitlines()[-1]


def test_no_rate_is_claimed_before_a_step_has_passed(clock, capsys):
    with metrics.progress(10) as shown:
        shown.update(0, "start")
        clock[0] = 1.0
        shown.update(0, "still")
        clock[0] = 2.0
        shown.update(4, "moving")
    assert capsys.readouterr().err.splitlines() == [
        " 0/10  start",
        " 0/10  still",
        " 4/10  4 steps/s  0:00:02 left  moving",
    ]


def test_a_terminal_gets_a_bar_below_the_reports(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with metrics.progress(782, description="search [x]") as shown:
        clock[0] = 100.0
        shown.update(300, "loss 1.63  [bold] acc 41.2 %")
    text = terminal.getvalue()
    assert "\x1b[" in text and "━" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "300  loss 1.63  [bold] acc 41.2 %" in plain
    assert "search [x]" in plain and "300/782" in plain and "3 steps/s  0:02:41 left" in plain


def test_a_bar_is_closed_when_the_run_fails(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with pytest.raises(RuntimeError, match="diverged"), metrics.progress(782):
        raise RuntimeError("diverged")
    # The cursor that the bar hides is shown again.
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("cause", ["no rich", "dumb terminal"])
def test_lines_are_plain_where_a_bar_cannot_be_drawn(clock, monkeypatch, cause):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb" if cause == "dumb terminal" else "xterm-256color")
    if cause == "no rich":
        for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
    with metrics.progress(10, description="search") as shown:
        clock[0] = 1.0
        shown.update(5, "loss 1.0")
    assert terminal.getvalue() == "search   5/10  5 steps/s  0:00:01 left  loss 1.0\n"


def test_forced_colour_does_not_turn_a_log_into_a_terminal(clock, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with metrics.progress(10) as shown:
        shown.update(5, "loss 1.0")
    assert capsys.readouterr().err == " 5/10  loss 1.0\n"


def test_written_numbers_are_exact(log):
    values = np.random.default_rng(0).normal(size=20)
    log.append({"step": 1, "values": values})
    [record] = metrics.read_metrics(log.path)
    chex.assert_trees_all_equal(np.array(record["values"]), values)
