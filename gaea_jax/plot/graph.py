"""A directed acyclic graph, such as a derived cell, drawn as an arc diagram."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path

from gaea_jax.errors import UsageError
from gaea_jax.plot.canvas import COLOURS, DPI, FAINT, save

Edge = tuple[int, int, str]

# Measures of the drawn graph, in inches.
RADIUS = 0.34
LANE = 0.55
CORNER = 0.6  # from the centre of a node to where its arcs run level
FONT = 8.5
CHARACTER = 0.602 * FONT / 72  # the width of one character of DejaVu Sans Mono, which Matplotlib brings along


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
      nodes: short names, in topological order; a line break is allowed, and ``c_{k-1}`` is set with a subscript.
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
        written = f"${name}$" if "_{" in name else name
        axes.text(pitch * index, 0, written, ha="center", va="center", fontsize=FONT, zorder=4)
    axes.text((left + right) / 2, top - 0.25, title, ha="center", va="center", fontsize=11)
    return save(figure, path)


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
