"""What all pictures share: the reports they read, colours, the blank figure, its look, and how it is written."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gaea_jax.errors import UsageError

Records = Sequence[Mapping[str, Any]]

# The colours of Okabe and Ito, apart under every form of colour blindness; without yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FAINT = "#9A9A9A"
DPI = 120


def require(found: Sequence[Any], what: str) -> None:
    """Refuses to draw nothing.

    Args:
      found: what there is to draw.
      what: what a report has to have, for the error.

    Raises:
      UsageError: on ``records``, if there is nothing.
    """
    if not found:
        raise UsageError("records", f"has no report with {what}; a plot needs at least one")


def series(records: Records, key: str) -> tuple[list[int], list[Any]]:
    """A curve over the steps of a run.

    Args:
      records: reports in order.
      key: name of a value.

    Returns:
      Steps and values of the reports that have it.
    """
    known = [record for record in records if key in record]
    return [record["step"] for record in known], [record[key] for record in known]


def new_figure(width: float, height: float) -> Figure:
    """A blank figure.

    Args:
      width: in inches.
      height: in inches.

    Returns:
      The figure, whose panels make room for their labels.
    """
    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def bare(axes: Axes) -> None:
    """Gives a panel a faint grid and no frame.

    Args:
      axes: the panel.
    """
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def marker(steps: Sequence[float]) -> dict[str, Any]:
    """How a curve is drawn: points are marked while they are few, for a single report would be no line at all.

    Args:
      steps: where its points are.

    Returns:
      Keywords of ``Axes.plot``.
    """
    return {"linewidth": 1.6, "marker": "o" if len(steps) <= 30 else None, "markersize": 3.5}


@contextlib.contextmanager
def replacement(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Writes a file in one atomic replacement.

    Args:
      path: the file; its folder is made if it is absent.

    Yields:
      The file to write instead, which takes the other's place at the end.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def save(figure: Figure, path: str | os.PathLike[str]) -> Figure:
    """Writes a figure in one atomic replacement.

    Args:
      figure: what to write.
      path: a name that ends in ``.png`` or ``.pdf``; its folder is made if it is absent.

    Returns:
      The figure.
    """
    FigureCanvasAgg(figure)
    with replacement(path) as temporary:
        figure.savefig(temporary, format=pathlib.Path(path).suffix.removeprefix("."))
    return figure
