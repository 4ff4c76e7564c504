"""Pictures of runs, drawn from their reports: plain data in, a PNG and its Matplotlib figure out.

Figures are made through Matplotlib's objects, never through pyplot, so that nothing global is touched and no
display is needed. A derived cell is also written for Graphviz. A file is replaced atomically: a killed run leaves the
last whole picture.
"""

from gaea_jax.plot.canvas import COLOURS, FAINT
from gaea_jax.plot.comparison import Panel, comparison
from gaea_jax.plot.curves import changes_curve, entropy_curve, mixture_heatmap, training_curves, truth_curve
from gaea_jax.plot.discretisation import discretisation
from gaea_jax.plot.dot import write_dot
from gaea_jax.plot.graph import RADIUS, draw_graph
from gaea_jax.plot.search import search_plots
from gaea_jax.plot.sparsification import sparsification

__all__ = [
    "COLOURS",
    "FAINT",
    "RADIUS",
    "Panel",
    "changes_curve",
    "comparison",
    "discretisation",
    "draw_graph",
    "entropy_curve",
    "mixture_heatmap",
    "search_plots",
    "sparsification",
    "training_curves",
    "truth_curve",
    "write_dot",
]
