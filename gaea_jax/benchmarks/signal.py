"""What a search sees of a table, and what readers of tables check."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.errors import UsageError

Path = str | os.PathLike[str]


class Signal(NamedTuple):
    """What a search sees of a table. Which values there are, the benchmark says.

    Attributes:
      dataset: what the cells were trained on; of TransNAS-Bench-101 the task.
      metric: "valid" or "test"; of a single training also "valtest", both together.
      epochs: of the training; the longest that the table has by default.
      identity: whether a query is a "cell", or, of NAS-Bench-201, a "class" of cells that compute the same.
      training: number of a single training, from 0, and not the mean of all; what was not trained so often is not
        feasible.
    """

    dataset: str = "cifar10"
    metric: str = "valid"
    epochs: int | None = None
    identity: str = "cell"
    training: int | None = None


def check_known(argument: str, value: str, known: Sequence[str]) -> None:
    """Refuses a value of an argument that is not among those known."""
    if value not in known:
        raise UsageError(argument, f"{value!r} is not known here; known are {', '.join(known)}")


def check_has(**wanted: tuple[Any, Sequence[Any]]) -> None:
    """Refuses values, by argument ``(value, those that the table has)``, that the table does not have."""
    for argument, (value, there) in wanted.items():
        if value not in there:
            raise UsageError(argument, f"{value!r} is not in the table, which has {', '.join(map(str, there))}")


def all_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """As `read_arrays`; UsageError on ``table``, if one is missing."""
    arrays = read_arrays(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise UsageError("table", f"{path} lacks the arrays {', '.join(missing)}")
    return arrays


def per_row(path: Path, name: str, values: np.ndarray, rows: int) -> np.ndarray:
    """A column as float32; UsageError on ``table``, unless it is a finite number a row."""
    if values.shape != (rows,) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UsageError("table", f"{path}: {name} wants {rows} finite numbers")
    return values.astype(np.float32)
