import itertools

import chex
import numpy as np
import pytest
from matplotlib.path import Path

from gaea_jax import plot
from gaea_jax.errors import UsageError
from gaea_jax.spaces import get_space, operation_entropy

CHOICES = get_space("darts").choices
SUFFIXES = {"": "batch statistics", "_running": "running statistics"}


def reports(count, suffixes=SUFFIXES):
    """Reports every 50 steps of a search that decides between operations, but not between inputs."""
    records = []
    for index in range(count):
        entropy = {name: 2.0 - 0.1 * index if choice.kind == "op" else 1.1 for name, choice in CHOICES.items()}
        record = {"step": 50 * (index + 1), "entropy": entropy | {"reduce": 1.9 - 0.1 * index}}
        for number, suffix in enumerate(suffixes):
            record[f"valid_accuracy{suffix}"] = 70.0 + index - 20 * number
            record[f"derived_accuracy{suffix}"] = 10.0 + 3 * index + 5 * number
        records.append(record)
    return records


def points(records, name):
    return np.array([[record["step"], record[name]] for record in records], float)


def drops(records, suffix=""):
    valid, derived = (points(records, f"{name}_accuracy{suffix}")[:, 1] for name in ("valid", "derived"))
    return np.column_stack([[operation_entropy(CHOICES, record["entropy"]) for record in records], valid - derived])


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_one_kind_of_statistics_is_two_lines_of_accuracies_and_one_of_drops(tmp_path, size):
    records = reports(4, [""])
    accuracies, dropped = plot.discretisation(records, CHOICES, tmp_path / "new" / "a.png").axes
    supernet, derived = accuracies.lines
    chex.assert_trees_all_close(supernet.get_xydata(), points(records, "valid_accuracy"))
    chex.assert_trees_all_close(derived.get_xydata(), points(records, "derived_accuracy"))
    assert supernet.get_color() != derived.get_color()
    # Which statistics they are, such reports do not say.
    assert legend(accuracies) == ["supernet", "derived cell, inherited weights"]
    assert dropped.get_legend() is None
    assert accuracies.get_xlabel() == "step" and "%" in accuracies.get_ylabel() and "nats" in dropped.get_xlabel()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    assert 700 <= size(tmp_path / "new" / "a.png")[0] <= 1100


def test_both_kinds_of_statistics_have_lines_of_their_own(tmp_path):
    records = reports(4)
    accuracies, dropped = plot.discretisation(records, CHOICES, tmp_path / "a.png").axes
    names = ["valid_accuracy", "derived_accuracy", "valid_accuracy_running", "derived_accuracy_running"]
    for line, name in zip(accuracies.lines, names, strict=True):
        chex.assert_trees_all_close(line.get_xydata(), points(records, name))
    looks = {(line.get_color(), line.get_linestyle()) for line in accuracies.lines}
    assert len(looks) == 4
    assert legend(accuracies) == [
        "supernet, batch statistics",
        "derived cell, inherited weights, batch statistics",
        "supernet, running statistics",
        "derived cell, inherited weights, running statistics",
    ]
    assert legend(dropped) == [*SUFFIXES.values()]
    curves = {line.get_label(): line for line in dropped.lines}
    for suffix, label in SUFFIXES.items():
        chex.assert_trees_all_close(curves[label].get_xydata(), drops(records, suffix))


def test_the_drop_runs_over_falling_entropy_from_a_circle_to_a_square(tmp_path):
    records = reports(5, [""])
    _, axes = plot.discretisation(records, CHOICES, tmp_path / "a.png").axes
    curve, start, end, nothing = axes.lines
    chex.assert_trees_all_close(curve.get_xydata(), drops(records))
    assert axes.xaxis_inverted() and not axes.yaxis_inverted()
    for mark, form, place in ((start, "o", 0), (end, "s", -1)):
        assert mark.get_marker() == form and mark.get_color() == curve.get_color()
        chex.assert_trees_all_close(mark.get_xydata(), drops(records)[[place]])
    assert list(nothing.get_ydata()) == [0, 0] and nothing.get_color() == plot.FAINT


def test_the_weights_of_edges_do_not_enter_the_entropy(tmp_path):
    records = reports(3, [""])
    curve, *_ = plot.discretisation(records, CHOICES, tmp_path / "a.png").axes[1].lines
    chex.assert_trees_all_close(curve.get_xdata(), np.array([1.95, 1.85, 1.75]))
    for record in records:
        record["entropy"] = {name: nats for name, nats in record["entropy"].items() if CHOICES[name].kind == "op"}
    without, *_ = plot.discretisation(records, CHOICES, tmp_path / "a.png").axes[1].lines
    chex.assert_trees_all_equal(without.get_xydata(), curve.get_xydata())


def test_reports_without_the_accuracies_are_skipped(tmp_path):
    records = reports(6)
    for name in ("valid_accuracy", "derived_accuracy"):
        del records[0][name], records[0][f"{name}_running"], records[3][f"{name}_running"]
    accuracies, dropped = plot.discretisation(records, CHOICES, tmp_path / "a.png").axes
    batch, running = records[1:], [*records[1:3], *records[4:]]
    chex.assert_trees_all_close(accuracies.lines[1].get_xydata(), points(batch, "derived_accuracy"))
    chex.assert_trees_all_close(accuracies.lines[3].get_xydata(), points(running, "derived_accuracy_running"))
    curves = {line.get_label(): line for line in dropped.lines}
    chex.assert_trees_all_close(curves["batch statistics"].get_xydata(), drops(batch))
    chex.assert_trees_all_close(curves["running statistics"].get_xydata(), drops(running, "_running"))


@pytest.mark.parametrize("records", [[], [{"step": 50, "entropy": {"normal": 2.0}, "valid_accuracy": 40.0}]])
def test_no_accuracy_of_a_derived_cell_is_refused(tmp_path, records):
    with pytest.raises(UsageError, match="an accuracy of the derived cell") as caught:
        plot.discretisation(records, CHOICES, tmp_path / "a.png")
    assert caught.value.argument == "records"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffixes", [[""], SUFFIXES])
def test_the_legends_hide_no_curve_and_nothing_is_cut(tmp_path, suffixes):
    records = reports(40, suffixes)
    # Curves that go up and down leave no corner of their panel free.
    for number, record in enumerate(records):
        for name in record:
            if "derived_accuracy" in name:
                record[name] = 5.0 + 90 * (number % 2)
    figure = plot.discretisation(records, CHOICES, tmp_path / "a.png")
    labels = []
    for axes in figure.axes:
        labels += [axes.xaxis.label, axes.yaxis.label]
        if found := axes.get_legend():
            labels.append(found)
            box = found.get_window_extent()
            curves = [Path(axes.transData.transform(line.get_xydata())) for line in axes.lines]
            assert not any(curve.intersects_bbox(box, filled=False) for curve in curves)
    boxes = [label.get_window_extent() for label in labels]
    assert min(min(box.x0, box.y0) for box in boxes) > 0
    assert max(box.x1 for box in boxes) < figure.bbox.x1 and max(box.y1 for box in boxes) < figure.bbox.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
