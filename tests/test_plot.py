import itertools
import json
import math
import pathlib
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

OPERATIONS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
PAIRS = [(source, target) for target in range(1, 4) for source in range(target)]
CHOICES = {"cell": (OPERATIONS, [f"{target}<-{source}" for source, target in PAIRS])}
LABELS = [*OPERATIONS, "none", "nor_conv_3x3"]
PARTS = sorted(path for path in pathlib.Path(plot.__file__).parent.glob("*.py") if path.stem != "__init__")
CELL = [(*pair, label) for pair, label in zip(PAIRS, LABELS, strict=True)]


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


def lines_through_labels(figure):
    """Labels of a drawn graph that the arrow of another edge runs through."""
    [axes] = figure.axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    # As polylines: the end point of a closing command is no part of the drawing.
    lines = [arrow.get_path().to_polygons(axes.transData, closed_only=False) for arrow in arrows]
    labels = [text for text in axes.texts if text.get_bbox_patch()]
    hit = []
    for own, text in enumerate(labels):
        box = text.get_window_extent()
        others = itertools.chain(*lines[:own], *lines[own + 1 :])
        hit += [text.get_text() for line in others if Path(line).intersects_bbox(box, filled=False)]
    return hit


def inside(text, axes):
    box, frame = text.get_window_extent(), axes.get_window_extent()
    return frame.x0 <= box.x0 and frame.y0 <= box.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1


@pytest.mark.parametrize(("count", "table"), [(1, True), (2, False), (60, True)])
def test_a_search_gets_every_picture_that_applies(tmp_path, count, table):
    written = plot.search_plots(search_records(count, table), CHOICES, CELL, tmp_path / "plots")
    names = ["loss_accuracy.png", "entropy.png", "mixture.png", "cell.png", *["truth.png"] * table]
    assert [path.name for path in written] == names
    assert {path.name for path in (tmp_path / "plots").iterdir()} == set(names)
    for path in written:
        width, height = size(path)
        assert 700 <= width <= 1100 and 250 <= height <= 1100


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
    for record in records:
        record["entropy"]["inputs"] = 0.5
    choices = {**CHOICES, "inputs": (("0", "1"), ["2", "3"])}
    entropy, skips = plot.entropy_curve(records, choices, tmp_path / "a.png").axes
    cell, inputs, two, four = entropy.lines
    chex.assert_trees_all_close(cell.get_ydata(), np.array([r["entropy"]["cell"] for r in records]))
    chex.assert_trees_all_close(inputs.get_ydata(), np.full(4, 0.5))
    assert two.get_ydata() == pytest.approx([math.log(2)] * 2)
    assert four.get_ydata() == pytest.approx([1.3862944] * 2)
    assert cell.get_color() != inputs.get_color()
    assert [text.get_text() for text in entropy.texts] == ["uniform: ln 2 = 0.693", "uniform: ln 4 = 1.386"]
    assert [text.get_text() for text in entropy.get_legend().get_texts()] == ["cell", "inputs"]
    assert all(inside(text, entropy) for text in entropy.texts)
    [share] = skips.lines
    chex.assert_trees_all_close(share.get_ydata(), np.array([100 * r["skip_share"] for r in records]))
    assert skips.get_ylim()[0] <= 0 and skips.get_ylim()[1] >= 100


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
    figure = plot.mixture_heatmap(records, {"cell": (options, CHOICES["cell"][1])}, tmp_path / "a.png")
    axes = figure.axes[0]
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    assert len(labels) == 6 * len(options) + 6
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert min(box.x0 for box in boxes) > 0


def test_heat_map_has_a_panel_a_choice(tmp_path):
    records = search_records(2)
    for record in records:
        record["mixture"]["reduce"] = np.full((2, 3), 1 / 3)
    choices = {**CHOICES, "reduce": (("a", "b", "c"), ["1<-0", "2<-0"])}
    figure = plot.mixture_heatmap(records, choices, tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes] == ["cell", "reduce", ""]
    assert figure.axes[1].collections[0].get_array().shape == (7, 2)


def test_a_mixture_of_another_shape_is_refused(tmp_path):
    choices = {"cell": (OPERATIONS[1:], CHOICES["cell"][1])}
    with pytest.raises(UsageError, match=r"6 edges x 3 options; .* \(6, 4\)") as caught:
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
        lambda path: plot.search_plots([], CHOICES, CELL, path),
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
    names = st.sampled_from(["sep_conv_3x3", "dil_conv_5x5", "none", "x", "a_rather_long_operation_5x5"])
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
    with pytest.raises(UsageError, match="edges"):
        plot.search_plots(search_records(1), CHOICES, [], tmp_path)
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


def test_pyplot_is_never_loaded_and_no_other_room_either(tmp_path):
    program = f"""
import json, sys
sys.path.insert(0, {str(pathlib.Path(plot.__file__).parents[2])!r})
from gaea_jax import plot
records, choices, edges = json.loads(sys.stdin.read())
plot.search_plots(records, choices, edges, {str(tmp_path)!r})
rooms = [name for name in sys.modules if name.startswith("gaea_jax.")]
print("matplotlib.pyplot" in sys.modules, sorted(rooms))
"""
    data = json.dumps([search_records(2), CHOICES, CELL])
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, text=True, check=True)
    rooms = [f"gaea_jax.{name}" for name in ("errors", "plot", *(f"plot.{path.stem}" for path in PARTS))]
    assert done.stdout == f"False {rooms}\n"


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
