"""What black-box searches had found after each number of queries."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from gaea_jax.errors import UsageError
from gaea_jax.plot.canvas import COLOURS, bare, new_figure, save

LINES = ("-", "--")


def anytime(
    curves: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
    queries: Sequence[int],
    labels: Mapping[str, str],
    path: str | os.PathLike[str],
) -> Figure:
    """Draws the mean over trials of each algorithm, with the interval of the mean as a band.

    Args:
      curves: by algorithm, for each name of ``labels`` a record a point: ``mean``, ``low``, ``high``. An algorithm
        whose trials were shorter has fewer points.
      queries: the points.
      labels: what to draw, from top to bottom, and the label of its axis; ranks get a logarithmic one.
      path: the file to write, PNG or PDF by its name; its folder is made if it is absent.

    Returns:
      The figure as written: a panel for each label.

    Raises:
      UsageError: on ``curves``, if there are none.
    """
    if not curves:
        raise UsageError("curves", "is empty; a plot needs at least one algorithm")
    figure = new_figure(8, 0.8 + 2.6 * len(labels))
    panels = figure.subplots(len(labels), sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        bare(axes)
        for number, (algorithm, of) in enumerate(curves.items()):
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
            points = queries[: len(of[name])]
            mean, low, high = ([record[key] for record in of[name]] for key in ("mean", "low", "high"))
            dashes = LINES[number // len(COLOURS) % len(LINES)]
            axes.plot(points, mean, dashes, label=algorithm, linewidth=1.6, **look)
            axes.fill_between(points, low, high, alpha=0.18, linewidth=0, **look)
        axes.set_ylabel(label)
        if name.endswith("rank"):
            axes.set_yscale("log")
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("queries")
    return save(figure, path)
