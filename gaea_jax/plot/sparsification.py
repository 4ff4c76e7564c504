"""How a search with learnt thresholds thins out its cells."""

import itertools
import os

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gaea_jax.plot.canvas import COLOURS, Records, bare, marker, new_figure, require, save, series

_STYLES = ("-", "--")


def sparsification(records: Records, path: str | os.PathLike[str]) -> Figure:
    """Draws what differentiable sparsification does (EnTranNAS-DST).

    Args:
      records: reports in order; those with ``step``, ``connections`` (cell to the number that each node has),
        ``thresholds`` (cell to that of each node, 0 to 1) and ``equivalence_gap`` (0 to 1) are drawn.
      path: the PNG to write; its folder is made if it is absent.

    Returns:
      The figure as written, over the steps: connections and threshold of each node, a colour a node and a line a cell,
      and by how much the weights of the engine cells differ at most from those of the transit cells.

    Raises:
      UsageError: no report has connections.
    """
    known = [record for record in records if "connections" in record]
    require(known, "a number of connections")
    figure = new_figure(7, 7.2)
    panels = figure.subplots(3, 1, sharex=True)
    for axes, key, label in zip(panels, ("connections", "thresholds"), ("connections", "threshold"), strict=False):
        steps, tables = series(known, key)
        for style, cell in zip(itertools.cycle(_STYLES), tables[0], strict=False):
            for node, values in enumerate(np.transpose([table[cell] for table in tables]).tolist()):
                line = {**marker(steps), "linestyle": style}
                axes.plot(steps, values, color=COLOURS[node % len(COLOURS)], label=f"{cell}, node {node}", **line)
        axes.set_ylabel(label)
    steps, gaps = series(known, "equivalence_gap")
    panels[2].plot(steps, gaps, color=COLOURS[0], **marker(steps))
    panels[2].set(xlabel="step", ylabel="equivalence gap", ylim=(-0.03, 1.03))
    for axes in panels:
        bare(axes)
    panels[0].set_ylim(bottom=0)
    panels[2].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1, fontsize=7.5, frameon=False)
    return save(figure, path)
