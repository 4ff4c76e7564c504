import itertools

import chex
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from gaea_jax import plot
from gaea_jax.errors import UsageError
from gaea_jax.plot import graph
from gaea_jax.spaces import get_space
from gaea_jax.spaces.published import PUBLISHED

OPERATIONS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
PAIRS = [(source, target) for target in range(1, 4) for source in range(target)]
LABELS = [*OPERATIONS, "none", "nor_conv_3x3"]
CELL = tuple((*pair, label) for pair, label in zip(PAIRS, LABELS, strict=True))
DARTS = get_space("darts")


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
def test_no_label_of_a_graph_meets_another_a_line_or_the_border(tmp_path_factory, size, graph):
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
    space = get_space(PUBLISHED[name].space)
    for cell, (nodes, edges) in space.graphs(PUBLISHED[name]).items():
        options = space.choices[cell].options
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
    assert list(tmp_path.iterdir()) == []
