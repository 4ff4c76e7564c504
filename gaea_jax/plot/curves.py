"""What happened in one run: loss, accuracy, entropy, mixture and truth over its steps."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gaea_jax.errors import UsageError
from gaea_jax.plot.canvas import COLOURS, FAINT, Records, bare, marker, new_figure, require, save, series
from gaea_jax.spaces.base import Choice

# What is chosen, by the kind of a choice.
WORDS = {"test": "test", "valid": "validation"}
KINDS = {"op": "operations", "input": "inputs of the nodes", "output": "inputs of the output"}
# The height of one row of a heat map, in inches.
ROW = 0.135


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
        steps, found = series(records, name)
        if steps:
            accuracy.plot(steps, found, "o-", color=colour, markersize=5, linewidth=1, label=label)
            accuracy.legend(loc="lower right")
    accuracy.set_ylabel("accuracy (%)")
    return save(figure, path)


def entropy_curve(records: Records, choices: Mapping[str, Choice], path: str | os.PathLike[str]) -> Figure:
    """Draws how decided a search is: the mean entropy of its choices, and its share of skip connections.

    The entropy starts near ln n for n options. A search that falls to skip connections on every edge has
    collapsed (figures 1 and 4 of
    `Geometry-Aware Gradient Algorithms for NAS <https://arxiv.org/abs/2004.07802>`_).

    Args:
      records: reports in order, with ``step``, ``entropy`` (choice to nats, a mean over its simplices) and, if the
        space has that operation, ``skip_share`` (share of the edges, 0 to 1). They may lack optional choices.
      choices: the choices of the space by name.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written: one panel a kind of choice, then the share, if there is one.

    Raises:
      UsageError: there is no report, or the reports lack a choice.
    """
    steps, entropies = series(records, "entropy")
    found = _reported(choices, entropies)
    kinds = list(dict.fromkeys(choice.kind for choice in found.values()))
    skips = any("skip_share" in record for record in records)
    figure, panels = _panels(records, len(kinds) + skips)
    for axes, kind in zip(panels, kinds, strict=False):
        drawn = {name: choice for name, choice in found.items() if choice.kind == kind}
        for colour, name in zip(itertools.cycle(COLOURS), drawn, strict=False):
            axes.plot(steps, [entropy[name] for entropy in entropies], color=colour, label=name, **marker(steps))
        for sizes in sorted({tuple(np.bincount(_simplices(choice)).tolist()) for choice in drawn.values()}):
            uniform = math.fsum(map(math.log, sizes)) / len(sizes)
            logarithms = [f"ln {size}" for size in sorted(set(sizes))]
            text = logarithms[0] if len(logarithms) == 1 else f"mean of {', '.join(logarithms)}"
            _ceiling(axes, uniform, f"uniform: {text} = {uniform:.3f}")
        axes.set_ylabel("mean entropy (nats)")
        axes.set_title(KINDS[kind], loc="left", fontsize=10)
        axes.legend()
    if skips:
        steps, shares = series(records, "skip_share")
        panels[-1].step(steps, [100 * share for share in shares], where="post", color=COLOURS[1], **marker(steps))
        panels[-1].set_ylim(-4, 104)
        panels[-1].set_ylabel("skip_connect edges (%)")
    return save(figure, path)


def mixture_heatmap(records: Records, choices: Mapping[str, Choice], path: str | os.PathLike[str]) -> Figure:
    """Draws the weight of every option of every simplex over the steps of a search, one panel a choice.

    Args:
      records: reports in order, with ``step`` and ``mixture`` (choice to weights, of the shape of its table). They may
        lack optional choices. The colour of a report spans the steps nearest to it.
      choices: the choices of the space by name.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written: one panel a choice, two beside each other, then the colour bar.

    Raises:
      UsageError: no report has a mixture, the reports lack a choice, or a mixture has another shape than its choice.
    """
    steps, mixtures = series(records, "mixture")
    require(steps, "a mixture")
    found = _reported(choices, mixtures)
    columns = min(2, len(found))
    rows = [len(choice.rows) + len(_simplices(choice)) for choice in found.values()]
    heights = [0.7 + ROW * max(rows[first : first + columns]) for first in range(0, len(rows), columns)]
    height = max(3.0, sum(heights))
    figure = new_figure(1 + 6 * columns, height)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    panels = list(grid.flat)[: len(found)]
    for axes, (name, choice) in zip(panels, found.items(), strict=True):
        weights = np.asarray([mixture[name] for mixture in mixtures], np.float64)
        if weights.shape[1:] != choice.shape:
            got = f"its mixture in the reports has shape {weights.shape[1:]}"
            raise UsageError("choices", f"{name} wants tables of shape {choice.shape}; {got}")
        simplices = _simplices(choice)
        order = np.argsort(simplices, kind="stable")
        # An empty row after the options of each simplex sets the simplices apart.
        places = np.arange(len(order)) + simplices[order]
        image = np.full((places[-1] + 1, len(steps)), np.nan)
        image[places] = weights.reshape(len(steps), -1).T[order]
        edges = np.arange(len(image) + 1) - 0.5
        mesh = axes.pcolormesh(_boundaries(steps), edges, image, cmap="viridis", vmin=0, vmax=1)
        axes.invert_yaxis()
        options = np.asarray(choice.options * len(choice.rows) if choice.segments is None else choice.options)
        middles = [float(places[simplices[order] == index].mean()) for index in range(len(choice.rows))]
        _row_ticks(axes, places.tolist(), options[order].tolist(), middles, choice.rows)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=10)
        axes.spines[:].set_visible(False)
    for axes in list(grid.flat)[len(found) :]:
        axes.remove()
    figure.colorbar(mesh, ax=panels, label="weight", aspect=8 * height, pad=0.02)
    return save(figure, path)


def changes_curve(records: Records, path: str | os.PathLike[str]) -> Figure:
    """Draws whether a search has settled: how often what runs changes, and how much of the derived cell stays.

    Args:
      records: reports in order, with ``step``; those are drawn that have ``changed_edges`` (a step, mean since the
        report before) and ``epoch``, or ``agreement`` with the derived cell of the report before (share of the
        connections of both, 0 to 1).
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written: edges that change in an epoch, and agreement, over the steps, of these what is known.

    Raises:
      UsageError: no report tells of either.
    """
    of_edges, of_cells = ([record for record in records if key in record] for key in ("changed_edges", "agreement"))
    require(of_edges or of_cells, "a number of changed edges, or an agreement")
    figure, panels = _panels(records, bool(of_edges) + bool(of_cells))
    if of_edges:
        steps, changes = series(of_edges, "changed_edges")
        epochs = [change * record["step"] / record["epoch"] for change, record in zip(changes, of_edges, strict=True)]
        panels[0].plot(steps, epochs, color=COLOURS[0], **marker(steps))
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("changed edges an epoch")
    if of_cells:
        _curve(panels[-1], of_cells, "agreement")
        panels[-1].set_ylim(-0.03, 1.03)
        panels[-1].set_ylabel("agreement with the last report")
    return save(figure, path)


def truth_curve(records: Records, path: str | os.PathLike[str]) -> Figure:
    """Draws the tabulated accuracy of the derived cell over the steps of a search, one panel a data set.

    Args:
      records: reports in order; those with ``table`` are drawn: data set to ``metric``, ``"test"`` or ``"valid"``, that
        accuracy and ``oracle`` in percent, and ``rank``, 1 for the best; or to None for a cell that the table lacks.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written; the dashed line of a panel is the best accuracy in the table.

    Raises:
      UsageError: no report has a table.
    """
    known = [record for record in records if "table" in record]
    require(known, "a table")
    figure, panels = _panels(known, len(known[0]["table"]))
    steps = [record["step"] for record in known]
    for axes, dataset in zip(panels, known[0]["table"], strict=True):
        entries = [record["table"][dataset] for record in known]
        there = [entry for entry in entries if entry]
        standing, last = "last derived cell: not in the table", entries[-1]
        axes.set_ylabel("accuracy (%)")
        axes.set_title(dataset, loc="left", fontsize=10)
        if there:
            metric, oracle = there[-1].get("metric", "test"), there[-1]["oracle"]
            _ceiling(axes, oracle, f"oracle: {oracle:.2f} %")
            accuracies = [(entry or {}).get(metric, np.nan) for entry in entries]
            axes.step(steps, accuracies, where="post", color=COLOURS[0], **marker(steps))
            axes.set_ylabel(f"{WORDS[metric]} accuracy (%)")
            if last:
                standing = f"last derived cell: {last[metric]:.2f} %, rank {last['rank']:,}"
        axes.set_title(standing, loc="right", fontsize=9)
    return save(figure, path)


def _reported(choices: Mapping[str, Choice], tables: Sequence[Mapping[str, Any]]) -> dict[str, Choice]:
    """The choices that all of the reports tell of; only optional ones may be absent, and then from all."""
    for name, choice in choices.items():
        there = sum(name in table for table in tables)
        if there != len(tables) and (there or not choice.optional):
            raise UsageError("choices", f"has {name}, which {len(tables) - there} of {len(tables)} reports lack")
    return {name: choice for name, choice in choices.items() if all(name in table for table in tables)}


def _simplices(choice: Choice) -> np.ndarray:
    """For each entry of a table, row by row, the number of its simplex."""
    if choice.segments is not None:
        return np.asarray(choice.segments)
    return np.repeat(np.arange(len(choice.rows)), len(choice.options))


def _panels(records: Records, count: int) -> tuple[Figure, list[Axes]]:
    """Panels one above the other over a common axis of steps."""
    require(records, "a step")
    figure = new_figure(7, 0.6 + 2.2 * count)
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        bare(axes)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    return figure, panels


def _curve(axes: Axes, records: Records, key: str, label: str | None = None) -> None:
    steps, values = series(records, key)
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


def _row_ticks(
    axes: Axes, places: Sequence[int], options: Sequence[str], middles: Sequence[float], names: Sequence[str]
) -> None:
    """Names each row by its option, and left of the options each group of rows by its simplex."""
    size = 7
    # With an odd number of options the label of a group stands at the height of one of them.
    axes.yaxis.remove_overlapping_locs = False
    axes.set_yticks(places, options, fontsize=size, family="monospace")
    axes.set_yticks(middles, names, minor=True, fontsize=9, fontweight="bold")
    axes.tick_params(axis="y", which="major", length=0)
    axes.tick_params(axis="y", which="minor", length=0, pad=12 + 0.602 * size * max(map(len, options)))
