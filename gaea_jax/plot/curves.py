"""What happened in one run: loss, accuracy, entropy, mixture and truth over its steps."""

import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gaea_jax.errors import UsageError
from gaea_jax.plot.canvas import COLOURS, FAINT, bare, marker, new_figure, save
from gaea_jax.plot.graph import Edge, draw_graph

Records = Sequence[Mapping[str, Any]]
Choices = Mapping[str, tuple[Sequence[str], Sequence[str]]]


def training_curves(records: Records, path: str | os.PathLike[str]) -> Figure:
    """Draws loss and accuracy over the steps of a search or of a retraining.

    Args:
      records: reports in order, with ``step`` and, where known, ``loss`` (nats), ``accuracy``, ``valid_accuracy``
        and ``test_accuracy`` (percent).
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
    others = (("valid_accuracy", "held-out images"), ("test_accuracy", "test set"))
    for colour, (name, label) in zip(COLOURS[1:], others, strict=False):
        steps, found = _series(records, name)
        if steps:
            accuracy.plot(steps, found, "o-", color=colour, markersize=5, linewidth=1, label=label)
            accuracy.legend(loc="lower right")
    accuracy.set_ylabel("accuracy (%)")
    return save(figure, path)


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
        entropy.plot(steps, [value[name] for value in values], color=colour, label=name, **marker(steps))
    for count in sorted({len(options) for options, _ in choices.values()}):
        _ceiling(entropy, math.log(count), f"uniform: ln {count} = {math.log(count):.3f}")
    entropy.set_ylabel("mean entropy (nats)")
    entropy.legend()
    steps, shares = _series(records, "skip_share")
    skips.step(steps, [100 * share for share in shares], where="post", color=COLOURS[1], **marker(steps))
    skips.set_ylim(-4, 104)
    skips.set_ylabel("skip_connect edges (%)")
    return save(figure, path)


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
    figure = new_figure(1 + 6 * len(choices), height)
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
    return save(figure, path)


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
        axes.step(steps, tests, where="post", color=COLOURS[0], **marker(steps))
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(dataset, loc="left", fontsize=10)
        standing = f"last derived cell: {last['test']:.2f} %, rank {last['rank']:,}"
        axes.set_title(standing, loc="right", fontsize=9)
    return save(figure, path)


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
    figure = new_figure(7, 0.6 + 2.2 * count)
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        bare(axes)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    return figure, panels


def _curve(axes: Axes, records: Records, key: str, label: str | None = None) -> None:
    steps, values = _series(records, key)
    axes.plot(steps, values, color=COLOURS[0], label=label, **marker(steps))


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
