import itertools
import json
import math
import pathlib
import re
import struct
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from gaea_jax import plot
from gaea_jax.errors import UsageError
from gaea_jax.plot import graph
from gaea_jax.spaces import Choice, Graph, get_space
from gaea_jax.spaces.published import PUBLISHED

OPERATIONS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
PAIRS = [(source, target) for target in range(1, 4) for source in range(target)]
CHOICES = {"cell": Choice(OPERATIONS, tuple(f"{target}<-{source}" for source, target in PAIRS), "op")}
INPUTS = Choice(("a", "b", "c", "d", "e"), ("x", "y"), "input", (0, 1, 0, 1, 1), optional=True)
DARTS = get_space("darts")
LABELS = [*OPERATIONS, "none", "nor_conv_3x3"]
CELL = tuple((*pair, label) for pair, label in zip(PAIRS, LABELS, strict=True))
GRAPHS = {"cell": Graph(("0\ninput", "1", "2", "3\noutput"), CELL)}


def search_records(count, table=True):
    """Reports of a search whose mixtures are drawn at random, every 50 steps."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        mixture = rng.dirichlet(np.ones(4), size=6)
        record = {
            "step": 50 * (index + 1),
            "loss": 2.3 / (index + 1),
            "accuracy": 10.0 + index,
            "entropy": {"cell": float(-(mixture * np.log(mixture)).sum(-1).mean())},
            "skip_share": float((mixture.argmax(-1) == 0).mean()),
            "mixture": {"cell": mixture.tolist()},
        }
        if table:
            record["table"] = {
                "cifar10": {"test": 90.0 + index % 3, "rank": 1812, "oracle": 94.37},
                "cifar100": {"test": 70.0 + index % 3, "rank": 900, "oracle": 73.51},
                "ImageNet16-120": {"test": 40.0 + index % 3, "rank": 7, "oracle": 47.31},
            }
        records.append(record)
    return records


def darts_records(count, edges=True):
    """Reports of a search on the space of DARTS."""
    rng = np.random.default_rng(1)
    records = search_records(count, table=False)
    for record in records:
        record["entropy"], record["mixture"] = {}, {}
        for name, choice in DARTS.choices.items():
            if edges or not choice.optional:
                weights = choice.uniform() * rng.uniform(0.5, 1, choice.shape)
                record["mixture"][name] = weights.tolist()
                record["entropy"][name] = 2.0 if choice.kind == "op" else 1.1
    return records


def size(path):
    """Width and height of a PNG in pixels, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def texts_overlap(figure):
    """Pairs of texts of a drawn graph that share a pixel, the boxes around labels included."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = []
    for text in figure.axes[0].texts:
        patch = text.get_bbox_patch()
        text.update_bbox_position_size(renderer)
        boxes.append((text.get_text(), (patch or text).get_window_extent(renderer)))
    return [(a[0], b[0]) for a, b in itertools.combinations(boxes, 2) if a[1].overlaps(b[1])]


def faint(arrow):
    return to_hex(arrow.get_edgecolor()).upper() == plot.FAINT


def lines_through_labels(figure):
    """Labels of a drawn graph that the arrow of another edge runs through."""
    [axes] = figure.axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    # As polylines: the end point of a closing command is no part of the drawing.
    lines = [arrow.get_path().to_polygons(axes.transData, closed_only=False) for arrow in arrows]
    # Faint lines are dashed, or have no label.
    labelled = [index for index, arrow in enumerate(arrows) if not faint(arrow) or arrow.get_linestyle() == "--"]
    labels = [text for text in axes.texts if text.get_bbox_patch()]
    hit = []
    for own, text in zip(labelled, labels, strict=True):
        box = text.get_window_extent()
        others = itertools.chain(*lines[:own], *lines[own + 1 :])
        hit += [text.get_text() for line in others if Path(line).intersects_bbox(box, filled=False)]
    return hit


def inside(text, axes):
    box, frame = text.get_window_extent(), axes.get_window_extent()
    return frame.x0 <= box.x0 and frame.y0 <= box.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1


@pytest.mark.parametrize(("count", "table"), [(1, True), (2, False), (60, True)])
def test_a_search_gets_every_picture_that_applies(tmp_path, count, table):
    written = plot.search_plots(search_records(count, table), CHOICES, GRAPHS, tmp_path / "plots")
    names = ["loss_accuracy.png", "entropy.png", "mixture.png", "cell.png", "cell.dot", *["truth.png"] * table]
    assert [path.name for path in written] == names
    assert {path.name for path in (tmp_path / "plots").iterdir()} == set(names)
    for path in written:
        if path.suffix == ".png":
            width, height = size(path)
            assert 700 <= width <= 1100 and 250 <= height <= 1100


def test_a_search_of_two_cells_gets_a_drawing_of_each(tmp_path):
    cells = DARTS.graphs(PUBLISHED["GAEA_PC_DARTS_CIFAR10"])
    written = plot.search_plots(darts_records(3, edges=False), DARTS.choices, cells, tmp_path)
    names = ["loss_accuracy.png", "entropy.png", "mixture.png", "normal.png", "normal.dot", "reduce.png", "reduce.dot"]
    assert [path.name for path in written] == names
    for name, cell in cells.items():
        nodes, edges, title = read_dot((tmp_path / f"{name}.dot").read_text())
        assert (tuple(nodes), tuple(edges), title) == (*cell, f"derived cell: {name}")
        assert 1500 <= size(tmp_path / f"{name}.png")[0] <= 2000


def test_training_curves_hold_loss_accuracy_and_the_test_points_there_are(tmp_path):
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


def test_a_single_report_is_visible_and_many_are_not_dotted(tmp_path):
    [line] = plot.training_curves(search_records(1), tmp_path / "a.png").axes[0].lines
    assert line.get_marker() == "o"
    [line] = plot.training_curves(search_records(100), tmp_path / "a.png").axes[0].lines
    assert line.get_marker() == "None"


def test_entropy_has_a_line_a_choice_and_the_uniform_line(tmp_path):
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


def test_entropy_has_a_panel_a_kind_of_choice(tmp_path):
    operations, inputs, skips = plot.entropy_curve(darts_records(4), DARTS.choices, tmp_path / "a.png").axes
    titles = [axes.get_title(loc="left") for axes in (operations, inputs, skips)]
    assert titles == ["operations of the edges", "inputs of the nodes", ""]
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


def test_reports_may_lack_optional_choices_only(tmp_path):
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


def test_heat_map_rows_are_edges_by_options_and_columns_lie_around_their_steps(tmp_path):
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
def test_heat_map_labels_do_not_meet(tmp_path, options):
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


def test_heat_map_rows_of_a_flat_table_are_grouped_by_simplex(tmp_path):
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


def test_heat_map_of_two_cells_fits_and_its_labels_do_not_meet(tmp_path):
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
def test_heat_map_has_a_panel_a_choice(tmp_path, count):
    records = search_records(2)
    choices = {f"table {index}": Choice(("a", "b", "c"), ("1<-0", "2<-0"), "op") for index in range(count)}
    for record in records:
        record["mixture"] = {name: np.full((2, 3), 1 / 3) for name in choices}
    figure = plot.mixture_heatmap(records, choices, tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes] == [*choices, ""]
    for axes in figure.axes[:-1]:
        assert axes.collections[0].get_array().shape == (7, 2)


def test_a_mixture_of_another_shape_is_refused(tmp_path):
    choices = {"cell": CHOICES["cell"]._replace(options=OPERATIONS[1:])}
    with pytest.raises(UsageError, match=r"cell wants tables of shape \(6, 3\); .* \(6, 4\)") as caught:
        plot.mixture_heatmap(search_records(2), choices, tmp_path / "a.png")
    assert caught.value.argument == "choices"
    assert list(tmp_path.iterdir()) == []


def test_truth_has_a_panel_a_data_set_with_its_oracle(tmp_path):
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


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot.training_curves([], path),
        lambda path: plot.entropy_curve([], CHOICES, path),
        lambda path: plot.mixture_heatmap([{"step": 1, "loss": 2.0}], CHOICES, path),
        lambda path: plot.truth_curve(search_records(2, table=False), path),
        lambda path: plot.search_plots([], CHOICES, GRAPHS, path),
    ],
)
def test_nothing_to_draw_is_refused(tmp_path, draw):
    with pytest.raises(UsageError) as caught:
        draw(tmp_path / "a")
    assert caught.value.argument == "records"
    assert list(tmp_path.iterdir()) == []


def test_a_drawn_cell_has_its_nodes_labels_and_arrows(tmp_path):
    figure = plot.draw_graph(["in", "1", "2", "out"], CELL, tmp_path / "a.png", "derived", OPERATIONS)
    [axes] = figure.axes
    written = [text.get_text() for text in axes.texts]
    assert sorted(written) == sorted([*LABELS, "in", "1", "2", "out", "derived"])
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    colours = [to_hex(arrow.get_edgecolor()).upper() for arrow in arrows]
    expected = dict(zip(OPERATIONS, plot.COLOURS, strict=False)) | {"none": plot.FAINT}
    assert colours == [expected[label] for label in LABELS]
    assert [arrow.get_linestyle() == "--" for arrow in arrows] == [label == "none" for label in LABELS]


def test_an_arrow_starts_and_ends_at_the_circles_of_its_nodes(tmp_path):
    [axes] = plot.draw_graph(["0", "1", "2", "3"], CELL, tmp_path / "a.png", "cell").axes
    circles = [patch for patch in axes.patches if not isinstance(patch, FancyArrowPatch)]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    for arrow, (source, target, _) in zip(arrows, CELL, strict=True):
        outline = arrow.get_path().vertices
        chex.assert_trees_all_close(distance(outline[0], circles[source]), plot.RADIUS, atol=1e-6)
        # The line ends a little short of the circle, where the tip of the head touches it.
        tip = min(distance(point, circles[target]) for point in outline)
        chex.assert_trees_all_close(tip, plot.RADIUS, atol=0.05)


def distance(point, circle):
    return float(np.linalg.norm(point - np.array(circle.center)))


def test_an_operation_keeps_its_colour_in_every_drawing(tmp_path):
    def colour(edges):
        figure = plot.draw_graph(["0", "1", "2"], edges, tmp_path / "a.png", "cell", OPERATIONS)
        return figure.axes[0].patches[0].get_edgecolor()

    few = colour([(0, 1, "avg_pool_3x3")])
    assert few == colour([(0, 1, "avg_pool_3x3"), (0, 2, "skip_connect"), (1, 2, "nor_conv_1x1")])
    assert to_hex(few).upper() == plot.COLOURS[3]


@st.composite
def graphs(draw):
    count = draw(st.integers(2, 8))
    pairs = list(itertools.combinations(range(count), 2))
    edges = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=16))
    names = st.sampled_from(["sep_conv_3x3", "dil_conv_5x5", "none", "", "x", "a_rather_long_operation_5x5"])
    return count, [(*pair, draw(names)) for pair in edges]


@hypothesis.given(graphs())
@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.example((4, [(*pair, "nor_conv_3x3") for pair in PAIRS]))
@hypothesis.example((2, [(0, 1, "sep_conv_3x3")] * 5))
@hypothesis.example((6, [(*pair, "sep_conv_3x3") for pair in itertools.combinations(range(6), 2)]))
def test_no_label_of_a_graph_meets_another_a_line_or_the_border(tmp_path_factory, graph):
    count, edges = graph
    path = tmp_path_factory.mktemp("graph") / "a.png"
    figure = plot.draw_graph([str(node) for node in range(count)], edges, path, "graph")
    assert texts_overlap(figure) == []
    assert lines_through_labels(figure) == []
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 > 0 and box.y0 > 0 and (box.x1, box.y1) < size(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_cells_are_readable(tmp_path, name):
    options = DARTS.choices["normal"].options
    for nodes, edges in DARTS.graphs(PUBLISHED[name]).values():
        figure = plot.draw_graph(nodes, edges, tmp_path / "a.png", name, options)
        assert texts_overlap(figure) == [] and lines_through_labels(figure) == []
        [axes] = figure.axes
        circles = [patch for patch in axes.patches if not isinstance(patch, FancyArrowPatch)]
        names = axes.texts[-1 - len(nodes) : -1]
        assert [text.get_text() for text in names[:3]] == ["$c_{k-2}$", "$c_{k-1}$", "0"]
        for circle, text in zip(circles, names, strict=True):
            box, within = text.get_window_extent(), circle.get_window_extent()
            assert within.x0 < box.x0 and box.x1 < within.x1


def test_the_operations_of_a_space_have_a_look_each(tmp_path):
    for options in (DARTS.choices["normal"].options, get_space("nas_bench_201").choices["cell"].options):
        nodes, edges = [str(index) for index in range(len(options) + 1)], [(i, i + 1, o) for i, o in enumerate(options)]
        [axes] = plot.draw_graph(nodes, edges, tmp_path / "a.png", "all", options).axes
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        assert len({to_hex(arrow.get_edgecolor()) for arrow in arrows}) == len(options)


def read_dot(text):
    """Names and edges of a Graphviz file with one statement a line, labels as Graphviz shows them."""

    def shown(label):
        return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), label)

    string = r'"((?:[^"\\]|\\.)*)"'
    first, *lines, last = text.splitlines()
    assert (first, last) == ("digraph {", "}")
    statements = {"rankdir=LR": 0, "labelloc=t": 0, "node [shape=circle]": 0}
    nodes, edges, titles = {}, [], []
    for line in lines:
        line = line.removeprefix("  ").removesuffix(";")
        if line in statements:
            statements[line] += 1
        elif found := re.fullmatch(f"label={string}", line):
            titles.append(shown(found[1]))
        elif found := re.fullmatch(rf"n(\d+) \[label={string}\]", line):
            nodes[int(found[1])] = shown(found[2])
        else:
            found = re.fullmatch(rf"n(\d+) -> n(\d+)(?: \[label={string}\])?", line)
            assert {int(found[1]), int(found[2])} <= set(nodes), line
            edges.append((int(found[1]), int(found[2]), shown(found[3] or "")))
    assert set(statements.values()) == {1} and len(titles) == 1 and list(nodes) == list(range(len(nodes)))
    return list(nodes.values()), edges, titles[0]


def test_a_graphviz_file_is_what_it_should_be(tmp_path):
    nodes, edges = ["c_{k-1}", "0\ninput", 'a "b" \\n'], [(0, 1, "sep_conv_3x3"), (1, 2, "")]
    plot.write_dot(nodes, edges, tmp_path / "new" / "a.dot", "a cell")
    assert (
        (tmp_path / "new" / "a.dot").read_text()
        == r"""digraph {
  rankdir=LR;
  labelloc=t;
  label="a cell";
  node [shape=circle];
  n0 [label="c_{k-1}"];
  n1 [label="0\ninput"];
  n2 [label="a \"b\" \\n"];
  n0 -> n1 [label="sep_conv_3x3"];
  n1 -> n2;
}
"""
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.dot"]


@hypothesis.given(st.lists(st.text('ab"\\\n;[]{}<>é', max_size=8), min_size=2, max_size=4), st.data())
@hypothesis.settings(deadline=None, max_examples=50)
def test_any_name_in_a_graphviz_file_is_read_back(tmp_path_factory, nodes, data):
    edges = [(0, index, data.draw(st.sampled_from([*nodes, ""]))) for index in range(1, len(nodes))]
    path = tmp_path_factory.mktemp("dot") / "a.dot"
    plot.write_dot(nodes, edges, path, nodes[0])
    assert read_dot(path.read_text(encoding="utf-8")) == (nodes, edges, nodes[0])


def test_the_arcs_of_the_complete_cell_do_not_cross():
    lanes = dict(zip(PAIRS, graph._lanes(CELL), strict=True))
    assert lanes[0, 1] == lanes[1, 2] == lanes[2, 3] == 0
    assert lanes[0, 2] * lanes[1, 3] < 0
    assert abs(lanes[0, 3]) == 2
    # Above, the third arc would cross the first; below, it encloses its twin.
    assert graph._lanes([(0, 2, "x"), (1, 3, "x"), (1, 3, "y")]) == [1, -1, -2]


@pytest.mark.parametrize("edge", [(1, 0, "x"), (1, 1, "x"), (0, 3, "x"), (-1, 1, "x")])
def test_an_edge_that_does_not_lead_to_a_later_node_is_refused(tmp_path, edge):
    with pytest.raises(UsageError, match="does not go from one of the 3 nodes") as caught:
        plot.draw_graph(["0", "1", "2"], [(0, 1, "x"), edge], tmp_path / "a.png", "graph")
    assert caught.value.argument == "edges"


def test_empty_graphs_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nodes"):
        plot.draw_graph([], [], tmp_path / "a.png", "graph")
    with pytest.raises(UsageError, match="graphs"):
        plot.search_plots(search_records(1), CHOICES, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_while_drawing_leaves_the_last_whole_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    plot.training_curves(search_records(2), path)
    before = path.read_bytes()

    def killed(figure, target, **options):
        target.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", killed)
    with pytest.raises(KeyboardInterrupt):
        plot.training_curves(search_records(3), path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    plot.training_curves(search_records(3), path)
    assert path.read_bytes() != before and list(tmp_path.iterdir()) == [path]


def test_neither_pyplot_nor_a_room_above_the_spaces_is_loaded(tmp_path):
    program = f"""
import json, sys
sys.path.insert(0, {str(pathlib.Path(plot.__file__).parents[2])!r})
from gaea_jax import plot
from gaea_jax.spaces import Choice, Graph
records, choices, graphs = json.loads(sys.stdin.read())
choices = {{name: Choice(*choice) for name, choice in choices.items()}}
graphs = {{name: Graph(*graph) for name, graph in graphs.items()}}
plot.search_plots(records, choices, graphs, {str(tmp_path)!r})
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("gaea_jax.")}}
print("matplotlib.pyplot" in sys.modules, sorted(rooms))
"""
    data = json.dumps([search_records(2), CHOICES, GRAPHS])
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, text=True, check=True)
    assert done.stdout == "False ['errors', 'plot', 'simplex', 'spaces']\n"


GROUPS = [
    {
        "label": label,
        "seeds": seeds,
        "curves": {
            name: {"step": [10, 20, 30], "wall_s": [1.0, 2.5, 4.0], "mean": mean, "std": [0.0, 0.5, 2.0]}
            for name, mean in curves.items()
        },
    }
    for label, seeds, curves in [
        ("joint", [0, 1], {"entropy": [1.3, 1.2, 1.1], "rank": [2.0, 4.0, 1.0]}),
        ("alternating", [0], {"entropy": [1.25, 1.0, 0.5]}),
    ]
]
PANELS = [plot.Panel("entropy", "nats"), plot.Panel("rank", "rank (1 is best)", held=True, rank=True)]


def test_a_comparison_has_a_line_a_group_and_a_band_over_its_seeds(tmp_path):
    figure = plot.comparison(GROUPS, PANELS, tmp_path / "new" / "a.png")
    steps, times, rank_steps, rank_times = figure.axes
    for axes, where in ((steps, [10, 20, 30]), (times, [1, 2.5, 4])):
        joint, alternating = axes.lines
        chex.assert_trees_all_close(joint.get_xydata(), np.column_stack([where, [1.3, 1.2, 1.1]]))
        chex.assert_trees_all_close(alternating.get_xydata(), np.column_stack([where, [1.25, 1.0, 0.5]]))
        assert joint.get_color() != alternating.get_color()
        (band,) = axes.collections
        edge = {tuple(point) for point in band.get_paths()[0].vertices.round(6).tolist()}
        assert {(where[1], 0.7), (where[1], 1.7), (where[2], -0.9), (where[2], 3.1)} <= edge
    for axes in (rank_steps, rank_times):
        (line,) = axes.lines
        (band,) = axes.collections
        assert line.get_drawstyle() == "steps-post" and axes.get_yscale() == "log"
        # No rank is better than the first, and none is drawn where a logarithm cannot be.
        assert band.get_paths()[0].vertices[:, 1].min() == 1
    assert [axes.get_ylabel() for axes in (steps, rank_steps)] == ["nats", "rank (1 is best)"]
    assert [axes.get_xlabel() for axes in (rank_steps, rank_times)] == ["step", "wall-clock time (s)"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["joint (2 seeds)", "alternating (1 seed)"]
    colours = [line.get_color() for line in steps.lines]
    assert [handle.get_color() for handle in legend.legend_handles] == colours
    assert size(tmp_path / "new" / "a.png")[0] > 1000


def test_a_comparison_of_many_groups_has_a_look_for_each_and_writes_a_pdf(tmp_path):
    groups = [{**GROUPS[1], "label": str(index)} for index in range(10)]
    figure = plot.comparison(groups, PANELS[:1], tmp_path / "a.pdf")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 10
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("panels", "said"), [([], "at least one"), ([plot.Panel("loss", "nats")], "not loss")], ids=["none", "unknown"]
)
def test_a_comparison_of_nothing_is_refused(tmp_path, panels, said):
    with pytest.raises(UsageError, match=said) as caught:
        plot.comparison(GROUPS, panels, tmp_path / "a.png")
    assert caught.value.argument == "panels"
    assert list(tmp_path.iterdir()) == []
