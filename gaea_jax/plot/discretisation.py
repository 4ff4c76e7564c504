"""What it costs a search to leave only the derived cell of its supernet."""

import os
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gaea_jax.plot.canvas import COLOURS, FAINT, Records, bare, marker, new_figure, require, save, series
from gaea_jax.spaces.base import Choice, operation_entropy

# What follows the names of the accuracies in a report, and which of BatchNorm's statistics it means if there are both.
STATISTICS = {"": "batch statistics", "_running": "running statistics"}


def discretisation(records: Records, choices: Mapping[str, Choice], path: str | os.PathLike[str]) -> Figure:
    """Draws the discretisation drop: the accuracy that the supernet loses where only the derived cell is left of it.

    A mixture that is nearly discrete loses little (`Geometry-Aware Gradient Algorithms for NAS
    <https://arxiv.org/abs/2004.07802>`_, section 4.1 and figure 1), which the second panel shows along the run.

    Args:
      records: reports in order; those with ``valid_accuracy`` and ``derived_accuracy`` (percent), ``step`` and
        ``entropy`` (choice to nats) are drawn; ``valid_accuracy_running`` and ``derived_accuracy_running`` too where
        they are known.
      choices: the choices of the space by name.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written: both accuracies over the steps, and their difference over the mean entropy of the
      operations, from a circle at the first report to a square at the last.

    Raises:
      UsageError: no report has the accuracies.
    """
    require([record for record in records if "derived_accuracy" in record], "an accuracy of the derived cell")
    figure = new_figure(7, 6)
    accuracies, drops = figure.subplots(2, 1)
    for axes in (accuracies, drops):
        bare(axes)
    both = any("derived_accuracy_running" in record for record in records)
    for number, (suffix, meaning) in enumerate(STATISTICS.items()):
        known = [record for record in records if f"derived_accuracy{suffix}" in record]
        if not known:
            continue
        steps, valid = series(known, f"valid_accuracy{suffix}")
        _, derived = series(known, f"derived_accuracy{suffix}")
        ending = f", {meaning}" if both else ""
        line = {"linestyle": ("-", "--")[number], **marker(steps)}
        accuracies.plot(steps, valid, color=COLOURS[0], label=f"supernet{ending}", **line)
        accuracies.plot(steps, derived, color=COLOURS[1], label=f"derived cell, inherited weights{ending}", **line)
        entropy = [operation_entropy(choices, record["entropy"]) for record in known]
        drop = [before - after for before, after in zip(valid, derived, strict=True)]
        colour = COLOURS[2 + number]
        drops.plot(entropy, drop, color=colour, linestyle=line["linestyle"], linewidth=1, marker=".", label=meaning)
        drops.plot(entropy[0], drop[0], "o", color=colour, markersize=7)
        drops.plot(entropy[-1], drop[-1], "s", color=colour, markersize=7)
    drops.axhline(0, color=FAINT, linestyle="--", linewidth=1.2)
    drops.invert_xaxis()
    accuracies.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    accuracies.set(xlabel="step", ylabel="held-out accuracy (%)")
    drops.set_xlabel("mean entropy of the operations (nats); circle: first report, square: last")
    drops.set_ylabel("discretisation drop (points)")
    for axes in (accuracies, drops) if both else (accuracies,):
        # The accuracies may fill a panel from top to bottom, so that no place in it is free.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1, fontsize=7.5, frameon=False)
    return save(figure, path)
