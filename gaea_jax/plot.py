"""Pictures of a run, drawn from its reports: plain data in, a PNG and its Matplotlib figure out.

Figures are made through Matplotlib's objects, never through pyplot, so that nothing global is touched and no
display is needed. A file is replaced atomically: a killed run leaves the last whole picture.
"""

import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from gaea_jax.errors import UsageError

Records = Sequence[Mapping[str, Any]]
Choices = Mapping[str, tuple[Sequence[str], Sequence[str]]]
Edge = tuple[int, int, str]

# The colours of Okabe and Ito, apart under every form of colour blindness; without yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FAINT = "#9A9A9A"
DPI = 120

# Measures of the drawn graph, in inches.
RADIUS = 0.34
LANE = 0.55
CORNER = 0.6  # from the centre of a node to where its arcs run level
FONT = 8.5
CHARACTER = 0.602 * FONT / 72  # the width of one character of DejaVu Sans Mono, which Matplotlib brings along


def training_curves(records: Records, path: str | os.PathLike[str]) -> Figure:
    """Draws loss and accuracy over the steps of a search or of a retraining.

    Args:
      records: reports in order, with ``step`` and, where known, ``loss`` (nats), ``accuracy`` and
        ``test_accuracy`` (percent).
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written, with two panels.

    Raises:
      UsageError: there is no report.
    """
    figure, (loss, accuracy) = _panels(records, 2)
    _curve(loss, records, "loss")
    loss.set_ylabel("training loss (nats)")
    _curve(accuracy, records, "accuracy", label="training batches")
    steps, tested = _series(records, "test_accuracy")
    if steps:
        accuracy.plot(steps, tested, "o-", color=COLOURS[1], markersize=5, linewidth=1, label="test set")
        accuracy.legend(loc="lower right")
    accuracy.set_ylabel("accuracy (%)")
    return _save(figure, path)


def entropy_curve(records: Records, choices: Choices, path: str | os.PathLike[str]) -> Figure:
    """Draws how decided a search is: the mean entropy of its choices, and its share of skip connections.

    The entropy starts near ln n for n options. A search that falls to skip connections on every edge has
    collapsed (figures 1 and 4 of
    `Geometry-Aware Gradient Algorithms for NAS <https://arxiv.org/abs/2004.07802>`_).

    Args:
      records: reports in order, with ``step``, ``entropy`` (choice to nats, a mean over edges) and
        ``skip_share`` (share of the edges, 0 to 1).
      choices: name of a choice to its options and the labels of its edges.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written, with two panels.

    Raises:
      UsageError: there is no report.
    """
    figure, (entropy, skips) = _panels(records, 2)
    for colour, name in zip(itertools.cycle(COLOURS), choices, strict=False):
        steps, values = _series(records, "entropy")
        entropy.plot(steps, [value[name] for value in values], color=colour, label=name, **_marker(steps))
    for count in sorted({len(options) for options, _ in choices.values()}):
        _ceiling(entropy, math.log(count), f"uniform: ln {count} = {math.log(count):.3f}")
    entropy.set_ylabel("mean entropy (nats)")
    entropy.legend()
    steps, shares = _series(records, "skip_share")
    skips.step(steps, [100 * share for share in shares], where="post", color=COLOURS[1], **_marker(steps))
    skips.set_ylim(-4, 104)
    skips.set_ylabel("skip_connect edges (%)")
    return _save(figure, path)


def mixture_heatmap(records: Records, choices: Choices, path: str | os.PathLike[str]) -> Figure:
    """Draws the weight of every option on every edge over the steps of a search, one panel a choice.

    Args:
      records: reports in order, with ``step`` and ``mixture`` (choice to weights, one row an edge, one column
        an option). The colour of a report spans the steps nearest to it.
      choices: name of a choice to its options and the labels of its edges, such as ``1<-0``.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written: one panel a choice, then the colour bar.

    Raises:
      UsageError: no report has a mixture, or a mixture has another shape than its choice.
    """
    steps, mixtures = _series(records, "mixture")
    _require(steps, "a mixture")
    rows = max((len(options) + 1) * len(edges) for options, edges in choices.values())
    height = max(3.0, 0.7 + 0.17 * rows)
    figure = _figure(1 + 6 * len(choices), height)
    panels = figure.subplots(1, len(choices), squeeze=False)[0]
    for axes, (name, (options, edges)) in zip(panels, choices.items(), strict=True):
        weights = np.asarray([mixture[name] for mixture in mixtures], np.float64)
        if weights.shape[1:] != (len(edges), len(options)):
            expected, got = f"{len(edges)} edges x {len(options)} options", weights.shape[1:]
            raise UsageError("choices", f"{name} has {expected}; its mixture in the reports has shape {got}")
        # An empty row after the options of each edge sets the edges apart.
        spaced = np.pad(weights, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
        image = spaced.reshape(len(steps), -1).T[:-1]
        grid = np.arange(len(image) + 1) - 0.5
        mesh = axes.pcolormesh(_boundaries(steps), grid, image, cmap="viridis", vmin=0, vmax=1)
        axes.invert_yaxis()
        first = np.arange(len(edges)) * (len(options) + 1)
        _edge_ticks(axes, first, options, edges)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=10)
        axes.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=list(panels), label="weight", aspect=8 * height, pad=0.02)
    return _save(figure, path)


def truth_curve(records: Records, path: str | os.PathLike[str]) -> Figure:
    """Draws the tabulated test accuracy of the derived cell over the steps of a search, one panel a data set.

    Args:
      records: reports in order; those with ``table`` (data set to ``test`` and ``oracle`` in percent, and
        ``rank``, 1 for the best) are drawn.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written; the dashed line of a panel is the best accuracy in the table.

    Raises:
      UsageError: no report has a table.
    """
    known = [record for record in records if "table" in record]
    _require(known, "a table")
    figure, panels = _panels(known, len(known[0]["table"]))
    steps = [record["step"] for record in known]
    for axes, dataset in zip(panels, known[0]["table"], strict=True):
        entries = [record["table"][dataset] for record in known]
        last = entries[-1]
        _ceiling(axes, last["oracle"], f"oracle: {last['oracle']:.2f} %")
        tests = [entry["test"] for entry in entries]
        axes.step(steps, tests, where="post", color=COLOURS[0], **_marker(steps))
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(dataset, loc="left", fontsize=10)
        standing = f"last derived cell: {last['test']:.2f} %, rank {last['rank']:,}"
        axes.set_title(standing, loc="right", fontsize=9)
    return _save(figure, path)


def draw_graph(
    nodes: Sequence[str],
    edges: Sequence[Edge],
    path: str | os.PathLike[str],
    title: str,
    options: Sequence[str] = (),
) -> Figure:
    """Draws a directed acyclic graph, such as a derived cell, as an arc diagram.

    The nodes stand on a line. An edge between neighbours runs along the line; every other edge is an arc that
    runs level in a lane above or below, with its label between two nodes, where no other label or arc can
    meet it. Edges without a label, or labelled ``none``, are faint.

    Args:
      nodes: short names, in topological order; a line break is allowed.
      edges: (index of the source, index of the target, label), with source < target.
      path: the PNG to write; its folder is made if it is absent.
      title: what is drawn.
      options: every label that may occur. Colours follow this order, so that an operation has the same colour
        in every drawing of a space; labels not among them get the colours after theirs.

    Returns:
      The figure as written, in inches from the centre of the first node.

    Raises:
      UsageError: there is no node, or an edge does not go from a node to a later one.
    """
    if not nodes:
        raise UsageError("nodes", "is empty; a graph has at least one node")
    for source, target, label in edges:
        if not 0 <= source < target < len(nodes):
            edge = (source, target, label)
            raise UsageError("edges", f"{edge} does not go from one of the {len(nodes)} nodes to a later one")
    names = dict.fromkeys([*options, *sorted({label for _, _, label in edges})])
    coloured = [name for name in names if name not in ("", "none")]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(coloured)}
    lanes = _lanes(edges)
    longest = max((len(label) for _, _, label in edges), default=0)
    pitch = 2 * CORNER + longest * CHARACTER + 0.25
    left, right = -RADIUS - 0.3, pitch * (len(nodes) - 1) + RADIUS + 0.3
    bottom = min(LANE * min(lanes, default=0), -RADIUS) - 0.3
    top = max(LANE * max(lanes, default=0), RADIUS) + 0.7

    figure = Figure(figsize=(right - left, top - bottom), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    for (source, target, label), lane in zip(edges, lanes, strict=True):
        colour, height = colours.get(label, FAINT), LANE * lane
        _arrow(axes, pitch * source, pitch * target, height, label, colour)
        if label:
            gap = (source + target - 1) // 2 + 0.5
            _label(axes, pitch * gap, height, label, colour)
    for index, name in enumerate(nodes):
        axes.add_patch(Circle((pitch * index, 0), RADIUS, facecolor="#F2F2F2", edgecolor="#333333", zorder=3))
        axes.text(pitch * index, 0, name, ha="center", va="center", fontsize=FONT, zorder=4)
    axes.text((left + right) / 2, top - 0.25, title, ha="center", va="center", fontsize=11)
    return _save(figure, path)


def search_plots(
    records: Records, choices: Choices, edges: Sequence[Edge], folder: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Writes every picture of a search: curves, entropy, mixture, derived cell, and truth if known.

    Args:
      records: the reports of a search, in order.
      choices: name of a choice to its options and the labels of its edges.
      edges: the derived cell as (source, target, operation), from its input, node 0, to its output, the last.
      folder: gets ``loss_accuracy.png``, ``entropy.png``, ``mixture.png``, ``cell.png`` and ``truth.png``.

    Returns:
      The files written.

    Raises:
      UsageError: there is no report, or one of the arguments does not fit another.
    """
    if not edges:
        raise UsageError("edges", "is empty; a derived cell has at least one edge")
    folder = pathlib.Path(folder)
    training_curves(records, folder / "loss_accuracy.png")
    entropy_curve(records, choices, folder / "entropy.png")
    mixture_heatmap(records, choices, folder / "mixture.png")
    last = max(target for _, target, _ in edges)
    nodes = ["0\ninput", *map(str, range(1, last)), f"{last}\noutput"]
    options = list(dict.fromkeys(option for names, _ in choices.values() for option in names))
    draw_graph(nodes, edges, folder / "cell.png", "derived cell", options)
    names = ["loss_accuracy", "entropy", "mixture", "cell"]
    if any("table" in record for record in records):
        truth_curve(records, folder / "truth.png")
        names.append("truth")
    return [folder / f"{name}.png" for name in names]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _save(figure: Figure, path: str | os.PathLike[str]) -> Figure:
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure).print_png(temporary)
    os.replace(temporary, path)
    return figure


def _require(found: Sequence[Any], what: str) -> None:
    if not found:
        raise UsageError("records", f"has no report with {what}; a plot needs at least one")


def _series(records: Records, key: str) -> tuple[list[int], list[Any]]:
    """Steps and values of the reports that have `key`."""
    known = [record for record in records if key in record]
    return [record["step"] for record in known], [record[key] for record in known]


def _panels(records: Records, count: int) -> tuple[Figure, list[Axes]]:
    """Panels one above the other over a common axis of steps."""
    _require(records, "a step")
    figure = _figure(7, 0.6 + 2.2 * count)
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        axes.grid(color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    return figure, panels


def _marker(steps: Sequence[int]) -> dict[str, Any]:
    """Points are marked while they are few: a single report would be no line at all."""
    return {"linewidth": 1.6, "marker": "o" if len(steps) <= 30 else None, "markersize": 3.5}


def _curve(axes: Axes, records: Records, key: str, label: str | None = None) -> None:
    steps, values = _series(records, key)
    axes.plot(steps, values, color=COLOURS[0], label=label, **_marker(steps))


def _ceiling(axes: Axes, height: float, label: str) -> None:
    """A dashed line that no curve exceeds, so that its name has free room above it."""
    axes.axhline(height, color=FAINT, linestyle="--", linewidth=1.2)
    axes.text(0.99, height, label, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)
    axes.margins(y=0.18)


def _boundaries(steps: Sequence[int]) -> np.ndarray:
    """Where the column of one report ends and the next begins: half-way, and as far outside at both ends."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (np.array(steps[:-1]) + np.array(steps[1:])) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


def _edge_ticks(axes: Axes, first: np.ndarray, options: Sequence[str], edges: Sequence[str]) -> None:
    """Names each row by its option, and left of the options each group of rows by its edge."""
    size = 7
    # With an odd number of options the label of an edge stands at the height of one of them.
    axes.yaxis.remove_overlapping_locs = False
    rows = (first[:, None] + np.arange(len(options))).ravel()
    axes.set_yticks(rows, [*options] * len(edges), fontsize=size, family="monospace")
    axes.set_yticks(first + (len(options) - 1) / 2, edges, minor=True, fontsize=9, fontweight="bold")
    axes.tick_params(axis="y", which="major", length=0)
    axes.tick_params(axis="y", which="minor", length=0, pad=12 + 0.602 * size * max(map(len, options)))


def _lanes(edges: Sequence[Edge]) -> list[int]:
    """The lane of each edge: 0 on the line of nodes, positive above it, negative below.

    Short edges come first and an edge lies outside all it meets, so only edges that interleave cross; of the
    two sides an edge takes the one with fewer crossings, then the one nearer to the line.
    """
    lanes: dict[int, int] = {}
    for index in sorted(range(len(edges)), key=lambda index: edges[index][1] - edges[index][0]):
        source, target, _ = edges[index]
        met = [(*edges[other][:2], lane) for other, lane in lanes.items()]
        met = [(start, end, lane) for start, end, lane in met if start < target and source < end]
        if target - source == 1 and not met:
            lanes[index] = 0
            continue
        sides = []
        for side in (1, -1):
            arcs = [(start, end, abs(lane)) for start, end, lane in met if side * lane > 0]
            crossings = sum((start - source) * (end - target) > 0 for start, end, _ in arcs)
            sides.append((crossings, max((lane for *_, lane in arcs), default=0) + 1, side))
        _, lane, side = min(sides, key=lambda choice: choice[:2])
        lanes[index] = side * lane
    return [lanes[index] for index in range(len(edges))]


def _arrow(axes: Axes, start: float, end: float, height: float, label: str, colour: str) -> None:
    """An arrow from the circle at `start` to the circle at `end` that runs level at `height` in between."""
    centres = np.array([[start, 0.0], [end, 0.0]])
    # The curve at either end aims at a point over its node, a little inside: the arcs of one node fan out.
    aims = np.array([[start + 0.2, height], [end - 0.2, height]]) if height else centres[::-1]
    ends = centres + RADIUS * (aims - centres) / np.linalg.norm(aims - centres, axis=1, keepdims=True)
    if height:
        level = [(start + CORNER, height), (end - CORNER, height)]
        points = np.array([ends[0], aims[0], *level, aims[1], ends[1]])
        codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3]
        path = Path(points, codes)
    else:
        path = Path(ends)
    arrow = FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=12, color=colour, zorder=1)
    arrow.set_linewidth(1.0 if colour == FAINT else 1.8)
    arrow.set_linestyle("--" if label == "none" else "-")
    axes.add_patch(arrow)


def _label(axes: Axes, x: float, y: float, label: str, colour: str) -> None:
    text = axes.text(x, y, label, ha="center", va="center", fontsize=FONT, family="monospace", zorder=2)
    text.set_color("#666666" if colour == FAINT else "#222222")
    text.set_bbox({"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8})
