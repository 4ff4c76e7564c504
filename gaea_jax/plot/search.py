"""All pictures of a search."""

import os
import pathlib
from collections.abc import Mapping

from gaea_jax.errors import UsageError
from gaea_jax.plot.canvas import Records
from gaea_jax.plot.curves import changes_curve, entropy_curve, mixture_heatmap, training_curves, truth_curve
from gaea_jax.plot.discretisation import discretisation
from gaea_jax.plot.dot import write_dot
from gaea_jax.plot.graph import draw_graph
from gaea_jax.plot.sparsification import sparsification
from gaea_jax.spaces.base import Choice, Graph


def search_plots(
    records: Records, choices: Mapping[str, Choice], graphs: Mapping[str, Graph], folder: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Writes every picture of a search: curves, entropy, mixture, derived cells, and what else is known.

    Args:
      records: the reports of a search, in order.
      choices: the choices of the space by name.
      graphs: the derived cells by name.
      folder: gets ``loss_accuracy.png``, ``entropy.png`` and ``mixture.png``; ``discretisation.png``, ``changes.png``,
        ``sparsification.png`` and ``truth.png`` where the reports have what they show; and for each cell a PNG and a
        Graphviz file of its name, such as ``normal.png`` and ``normal.dot``.

    Returns:
      The files written.

    Raises:
      UsageError: there is no report or no cell, or one of the arguments does not fit another.
    """
    if not graphs:
        raise UsageError("graphs", "is empty; a search derives at least one cell")
    folder = pathlib.Path(folder)
    training_curves(records, folder / "loss_accuracy.png")
    entropy_curve(records, choices, folder / "entropy.png")
    mixture_heatmap(records, choices, folder / "mixture.png")
    names = ["loss_accuracy.png", "entropy.png", "mixture.png"]
    options = list(
        dict.fromkeys(option for choice in choices.values() if choice.kind == "op" for option in choice.options)
    )
    for name, graph in graphs.items():
        title = "derived cell" if len(graphs) == 1 else f"derived cell: {name}"
        draw_graph(graph.nodes, graph.edges, folder / f"{name}.png", title, options)
        write_dot(graph.nodes, graph.edges, folder / f"{name}.dot", title)
        names += [f"{name}.png", f"{name}.dot"]
    if any("derived_accuracy" in record for record in records):
        discretisation(records, choices, folder / "discretisation.png")
        names.append("discretisation.png")
    if any("changed_edges" in record or "agreement" in record for record in records):
        changes_curve(records, folder / "changes.png")
        names.append("changes.png")
    if any("connections" in record for record in records):
        sparsification(records, folder / "sparsification.png")
        names.append("sparsification.png")
    if any("table" in record for record in records):
        truth_curve(records, folder / "truth.png")
        names.append("truth.png")
    return [folder / name for name in names]
