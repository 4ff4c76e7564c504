import itertools
import math

import chex
import numpy as np
import pytest

from gaea_jax import plot
from gaea_jax.errors import UsageError
from gaea_jax.spaces import Choice, get_space

CHOICES = get_space("nas_bench_201_nozero").choices
OPERATIONS = CHOICES["cell"].options
INPUTS = Choice(("a", "b", "c", "d", "e"), ("x", "y"), "input", (0, 1, 0, 1, 1), weighs="cell")
DARTS = get_space("darts")


def inside(text, axes):
    box, frame = text.get_window_extent(), axes.get_window_extent()
    return frame.x0 <= box.x0 and frame.y0 <= box.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1


def test_training_curves_hold_loss_accuracy_and_the_test_points_there_are(tmp_path, search_records):
    records = search_records(5)
    loss, accuracy = plot.training_curves(records, tmp_path / "a.png").axes
    [line] = loss.lines
    chex.assert_trees_all_close(line.get_xydata(), np.array([[r["step"], r["loss"]] for r in records]))
    assert "nats" in loss.get_ylabel() and "%" in accuracy.get_ylabel() and accuracy.get_xlabel() == "step"
    assert len(accuracy.lines) == 1 and accuracy.get_legend() is None

    records[1]["test_accuracy"], records[4]["test_accuracy"] = 12.0, 15.0
    _, accuracy = plot.training_curves(records, tmp_path / "a.png").axes
    train, tested = accuracy.lines
    chex.assert_trees_all_close(train.get_ydata(), np.array([10.0, 11, 12, 13, 14]))
    chex.assert_trees_all_close(tested.get_xydata(), np.array([[100.0, 12], [250, 15]]))
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training batches", "test set"]

    for record in records:
        record["valid_accuracy"] = record["step"] / 10
    _, accuracy = plot.training_curves(records, tmp_path / "a.png").axes
    _, held_out, _ = accuracy.lines
    chex.assert_trees_all_close(held_out.get_xydata(), np.array([[r["step"], r["step"] / 10] for r in records]))
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["training batches", "held-out images", "test set"]


def test_a_single_report_is_visible_and_many_are_not_dotted(tmp_path, search_records):
    [line] = plot.training_curves(search_records(1), tmp_path / "a.png").axes[0].lines
    assert line.get_marker() == "o"
    [line] = plot.training_curves(search_records(100), tmp_path / "a.png").axes[0].lines
    assert line.get_marker() == "None"


def test_entropy_has_a_line_a_choice_and_the_uniform_line(tmp_path, search_records):
    records = search_records(4)
    entropy, skips = plot.entropy_curve(records, CHOICES, tmp_path / "a.png").axes
    cell, uniform = entropy.lines
    chex.assert_trees_all_close(cell.get_ydata(), np.array([r["entropy"]["cell"] for r in records]))
    assert uniform.get_ydata() == pytest.approx([1.3862944] * 2)
    assert [text.get_text() for text in entropy.texts] == ["uniform: ln 4 = 1.386"]
    assert [text.get_text() for text in entropy.get_legend().get_texts()] == ["cell"]
    assert all(inside(text, entropy) for text in entropy.texts)
    [share] = skips.lines
    chex.assert_trees_all_close(share.get_ydata(), np.array([100 * r["skip_share"] for r in records]))
    assert skips.get_ylim()[0] <= 0 and skips.get_ylim()[1] >= 100


def test_entropy_has_a_panel_a_kind_of_choice(tmp_path, darts_records):
    operations, inputs, skips = plot.entropy_curve(darts_records(4), DARTS.choices, tmp_path / "a.png").axes
    titles = [axes.get_title(loc="left") for axes in (operations, inputs, skips)]
    assert titles == ["operations", "inputs of the nodes", ""]
    for axes, names, value, ceiling, written in (
        (operations, ["normal", "reduce"], 2.0, math.log(8), "ln 8 = 2.079"),
        # The mean of as many logarithms as there are nodes: a quarter of ln 5!.
        (inputs, ["normal_edges", "reduce_edges"], 1.1, math.log(120) / 4, "mean of ln 2, ln 3, ln 4, ln 5 = 1.197"),
    ):
        normal, reduce, uniform = axes.lines
        assert normal.get_color() != reduce.get_color()
        assert list(normal.get_ydata()) == list(reduce.get_ydata()) == [value] * 4
        assert uniform.get_ydata() == pytest.approx([ceiling] * 2)
        assert [text.get_text() for text in axes.texts] == [f"uniform: {written}"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
        assert inside(axes.texts[0], axes)
    assert len(plot.entropy_curve(darts_records(4, edges=False), DARTS.choices, tmp_path / "a.png").axes) == 2


def test_reports_may_lack_optional_choices_only(tmp_path, darts_records):
    records = darts_records(3)
    del records[1]["mixture"]["reduce_edges"], records[0]["entropy"]["normal"]
    for draw, said in (
        (plot.mixture_heatmap, "has reduce_edges, which 1 of 3 reports lack"),
        (plot.entropy_curve, "has normal, which 1 of 3 reports lack"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            draw(records, DARTS.choices, tmp_path / "a.png")
        assert caught.value.argument == "choices"
    assert list(tmp_path.iterdir()) == []


def test_heat_map_rows_are_edges_by_options_and_columns_lie_around_their_steps(tmp_path, search_records):
    records = search_records(3)
    records[2]["step"] = 400  # reports at 50, 100 and 400
    figure = plot.mixture_heatmap(records, CHOICES, tmp_path / "a.png")
    axes, bar = figure.axes
    [mesh] = axes.collections
    image = np.ma.filled(mesh.get_array(), np.nan)
    chex.assert_shape(image, (6 * 5 - 1, 3))
    options = [tick.get_text() for tick in axes.get_yticklabels()]
    edges = [tick.get_text() for tick in axes.get_yticklabels(minor=True)]
    assert options == [*OPERATIONS] * 6
    assert edges == ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]
    weights = np.array([record["mixture"]["cell"] for record in records])
    for row, (edge, option) in zip(axes.get_yticks(), np.ndindex(6, 4), strict=True):
        chex.assert_trees_all_close(image[int(row)], weights[:, edge, option])
    assert np.isnan(image[4::5]).all() and np.isnan(image).sum() == 5 * 3
    chex.assert_trees_all_close(mesh.get_coordinates()[0, :, 0], np.array([25.0, 75, 250, 550]))
    assert mesh.get_clim() == (0, 1) and bar.get_ylabel() == "weight"
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("options", [OPERATIONS, ("none", *OPERATIONS)])
def test_heat_map_labels_do_not_meet(tmp_path, search_records, options):
    records = search_records(2)
    for record in records:
        record["mixture"]["cell"] = np.full((6, len(options)), 1 / len(options))
    choices = {"cell": CHOICES["cell"]._replace(options=options)}
    figure = plot.mixture_heatmap(records, choices, tmp_path / "a.png")
    axes = figure.axes[0]
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    assert len(labels) == 6 * len(options) + 6
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert min(box.x0 for box in boxes) > 0


def test_heat_map_rows_of_a_flat_table_are_grouped_by_simplex(tmp_path, search_records):
    records = search_records(2)
    for index, record in enumerate(records):
        record["mixture"]["inputs"] = [0.1, 0.2, 0.3, 0.4 + index / 10, 0.5]
    figure = plot.mixture_heatmap(records, {**CHOICES, "inputs": INPUTS}, tmp_path / "a.png")
    axes = figure.axes[1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "c", "b", "d", "e"]
    assert [tick.get_text() for tick in axes.get_yticklabels(minor=True)] == ["x", "y"]
    assert list(axes.get_yticks(minor=True)) == [0.5, 4.0]
    image = np.ma.filled(axes.collections[0].get_array(), np.nan)
    chex.assert_trees_all_close(image[:, 0], np.array([0.1, 0.3, np.nan, 0.2, 0.4, 0.5]))
    chex.assert_trees_all_close(image[:, 1], np.array([0.1, 0.3, np.nan, 0.2, 0.5, 0.5]))


def test_heat_map_of_two_cells_fits_and_its_labels_do_not_meet(tmp_path, darts_records, size):
    figure = plot.mixture_heatmap(darts_records(2), DARTS.choices, tmp_path / "a.png")
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == list(DARTS.choices) and bar.get_ylabel() == "weight"
    labels = [label for axes in panels for label in (*axes.get_yticklabels(), *axes.get_yticklabels(minor=True))]
    assert len(labels) == 2 * (14 * 8 + 14) + 2 * (14 + 4)
    boxes = [text.get_window_extent() for text in (*labels, *(axes.title for axes in panels))]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    width, height = size(tmp_path / "a.png")
    assert width < 1600 and height < 2600
    assert min(box.x0 for box in boxes) > 0 and max(box.x1 for box in boxes) < width


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_heat_map_has_a_panel_a_choice(tmp_path, search_records, count):
    records = search_records(2)
    choices = {f"table {index}": Choice(("a", "b", "c"), ("1<-0", "2<-0"), "op") for index in range(count)}
    for record in records:
        record["mixture"] = {name: np.full((2, 3), 1 / 3) for name in choices}
    figure = plot.mixture_heatmap(records, choices, tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes] == [*choices, ""]
    for axes in figure.axes[:-1]:
        assert axes.collections[0].get_array().shape == (7, 2)


def test_a_mixture_of_another_shape_is_refused(tmp_path, search_records):
    choices = {"cell": CHOICES["cell"]._replace(options=OPERATIONS[1:])}
    with pytest.raises(UsageError, match=r"cell wants tables of shape \(6, 3\); .* \(6, 4\)") as caught:
        plot.mixture_heatmap(search_records(2), choices, tmp_path / "a.png")
    assert caught.value.argument == "choices"
    assert list(tmp_path.iterdir()) == []


def test_truth_has_a_panel_a_data_set_with_its_oracle(tmp_path, search_records):
    records = [{"step": 0, "loss": 2.3}, *search_records(4)]
    panels = plot.truth_curve(records, tmp_path / "a.png").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["cifar10", "cifar100", "ImageNet16-120"]
    for axes, oracle, first in zip(panels, [94.37, 73.51, 47.31], [90.0, 70.0, 40.0], strict=True):
        dashed, curve = axes.lines
        assert list(dashed.get_ydata()) == [oracle, oracle] and dashed.get_linestyle() == "--"
        chex.assert_trees_all_close(curve.get_xydata()[:, 0], np.array([50.0, 100, 150, 200]))
        chex.assert_trees_all_close(curve.get_ydata(), first + np.array([0.0, 1, 2, 0]))
        assert [text.get_text() for text in axes.texts] == [f"oracle: {oracle:.2f} %"]
        assert inside(axes.texts[0], axes)
    assert panels[0].get_title(loc="right") == "last derived cell: 90.00 %, rank 1,812"


def test_changes_are_those_of_an_epoch(tmp_path):
    records = [{"step": 50 * n, "epoch": n / 8, "changed_edges": 0.01 * n, "loss": 1.0} for n in (1, 2, 3)]
    del records[1]["changed_edges"]
    [axes] = plot.changes_curve(records, tmp_path / "a.png").axes
    [curve] = axes.lines
    chex.assert_trees_all_close(curve.get_xydata(), np.array([[50.0, 4.0], [150.0, 12.0]]))
    assert axes.get_ylim()[0] == 0
    for number, record in enumerate(records[1:]):
        record["agreement"] = (0.5, 1.0)[number]
    changes, agreement = plot.changes_curve(records, tmp_path / "a.png").axes
    assert len(changes.lines) == 1
    chex.assert_trees_all_close(agreement.lines[0].get_xydata(), np.array([[100.0, 0.5], [150.0, 1.0]]))


def test_sparsification_has_a_line_for_each_node_of_both_cells(tmp_path):
    records = [
        {
            "step": 10 * n,
            "connections": {"normal": [4, 3, 2, 1], "reduce": [n, n, n, n]},
            "thresholds": {"normal": [0.5] * 4, "reduce": [0.1 * n] * 4},
            "equivalence_gap": 0.2 * n,
        }
        for n in (1, 2, 3)
    ]
    connections, thresholds, gap = plot.sparsification([{"step": 5}, *records], tmp_path / "a.png").axes
    lines = {line.get_label(): line for line in connections.lines}
    assert len(lines) == 8 and len(thresholds.lines) == 8
    assert list(lines["normal, node 1"].get_ydata()) == [3, 3, 3]
    assert list(lines["reduce, node 3"].get_xydata()[:, 1]) == [1, 2, 3]
    assert lines["normal, node 0"].get_linestyle() != lines["reduce, node 0"].get_linestyle()
    chex.assert_trees_all_close(gap.lines[0].get_xydata(), np.array([[10, 0.2], [20, 0.4], [30, 0.6]]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot.training_curves([], path),
        lambda path: plot.entropy_curve([], CHOICES, path),
        lambda path: plot.mixture_heatmap([{"step": 1, "loss": 2.0}], CHOICES, path),
        lambda path: plot.changes_curve([{"step": 1, "loss": 2.0}], path),
        lambda path: plot.sparsification([{"step": 1, "loss": 2.0}], path),
        lambda path: plot.truth_curve([{"step": 1, "loss": 2.0}], path),
    ],
)
def test_nothing_to_draw_is_refused(tmp_path, draw):
    with pytest.raises(UsageError) as caught:
        draw(tmp_path / "a")
    assert caught.value.argument == "records"
    assert list(tmp_path.iterdir()) == []
