"""Several runs side by side: one line a group of runs that differ only in their seed, with a band over the seeds."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gaea_jax.errors import UsageError
from gaea_jax.plot.canvas import COLOURS, bare, marker, new_figure, save

# Groups beyond the number of colours are told apart by these.
LINES = ("-", "--", ":", "-.")
AXES = {"step": "step", "wall_s": "wall-clock time (s)"}


class Panel(NamedTuple):
    """One quantity to compare.

    Attributes:
      curve: its name among the curves of a group.
      label: of the vertical axis, with the unit.
      held: drawn as stairs, because a value holds until the next report.
      rank: drawn on a logarithmic axis that ends at 1.
    """

    curve: str
    label: str
    held: bool = False
    rank: bool = False


def comparison(groups: Sequence[Mapping[str, Any]], panels: Sequence[Panel], path: str | os.PathLike[str]) -> Figure:
    """Draws the mean of each group, and a band of one population standard deviation around it.

    Args:
      groups: each with ``label``; ``seeds``, one for each of its runs; and ``curves``, name to equally long lists
        ``step``, ``wall_s`` (seconds), ``mean`` and ``std``, the last two with None where nothing is known. A group may
        lack some of the curves.
      panels: what to draw, from top to bottom: over the steps on the left, over the time on the right.
      path: the file to write, PNG or PDF by its name; its folder is made if it is absent.

    Returns:
      The figure as written: two panels a quantity, row by row.

    Raises:
      UsageError: there is no panel, or no group has the curve of one.
    """
    for panel in panels:
        if not any(panel.curve in group["curves"] for group in groups):
            raise UsageError("panels", f"wants curves that a group has, not {panel.curve}")
    if not panels:
        raise UsageError("panels", "is empty; a comparison has at least one")
    figure = new_figure(11, 1 + 2.1 * len(panels))
    rows = figure.subplots(len(panels), len(AXES), sharex="col", sharey="row", squeeze=False)
    looks: list[dict[str, Any]] = [
        {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}
        for index in range(len(groups))
    ]
    for row, panel in zip(rows, panels, strict=True):
        row[0].set_ylabel(panel.label)
        if panel.rank:
            row[0].set_yscale("log")
        for axes, over in zip(row, AXES, strict=True):
            bare(axes)
            for group, look in zip(groups, looks, strict=True):
                if panel.curve not in group["curves"]:
                    continue
                curve = group["curves"][panel.curve]
                where, mean, std = (np.asarray(curve[name], np.float64) for name in (over, "mean", "std"))
                stairs = "steps-post" if panel.held else "default"
                axes.plot(where, mean, drawstyle=stairs, **look, **marker(curve[over]))
                if len(group["seeds"]) > 1:
                    low = np.maximum(mean - std, 1) if panel.rank else mean - std
                    step = "post" if panel.held else None
                    axes.fill_between(where, low, mean + std, step=step, color=look["color"], alpha=0.18, linewidth=0)
    for axes, label in zip(rows[-1], AXES.values(), strict=True):
        axes.set_xlabel(label)
    names = [f"{group['label']} ({_seeds(len(group['seeds']))})" for group in groups]
    columns = 1 if max(map(len, names)) > 60 else min(3, len(groups))
    figure.legend([Line2D([], [], **look) for look in looks], names, loc="outside upper center", ncols=columns)
    return save(figure, path)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
