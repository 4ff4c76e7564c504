"""The NAS-Bench-201 oracle: what training each of the 15,625 cells from scratch gave.

A table is an ``.npz`` file of plain arrays (nothing is unpickled), one row a cell. Row number = the six
operations read as a base-5 number, first edge most significant. No table ships with the package; any file of
this form will do:

=========================  ==================  =====================================================
name                       type                meaning
=========================  ==================  =====================================================
``op_names``               text [5]            the operations in the order of their digits
``edges``                  text [6]            ``node<-source``, in the order of the digits
``ops``                    int [15625, 6]      the digits of each row
``c10_valid_200``, ...     float [15625]       percent; ``{c10,c100,in16}_{valid,test}_{200,12}``
=========================  ==================  =====================================================

``op_names`` and ``edges`` say which space the table is of and must be those of
`gaea_jax.spaces.nas_bench_201`. The six arrays of the 200-epoch schedule are required, those of the 12-epoch
schedule optional; other arrays are ignored. As the benchmark splits the data (`NAS-Bench-201
<https://arxiv.org/abs/2001.00326>`_, section 2.2), CIFAR-10 *valid* is accuracy on one half of the training
images after training on the other half, *test* on the test images after training on all; for CIFAR-100 and
ImageNet16-120 both are halves of the original held-out set. Values are means over training seeds.
"""

import dataclasses
import os
import reprlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.errors import UsageError
from gaea_jax.spaces.nas_bench_201 import EDGES, NAS_BENCH_201, OPERATIONS, Genotype

PREFIXES = {"cifar10": "c10", "cifar100": "c100", "ImageNet16-120": "in16"}
"""What the names of a table's columns begin with, by data set."""

_METRICS = ("valid", "test")
_SHAPE = (len(OPERATIONS),) * len(EDGES)
_ROWS = NAS_BENCH_201.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The measured accuracies of all cells of a space; made by `load_table`, compared by identity.

    Methods name a column by ``dataset`` (``"cifar10"``, ``"cifar100"``, ``"ImageNet16-120"``), ``metric``
    (``"valid"``, ``"test"``) and ``epochs`` of training (200, and 12 if the file has that schedule). Each
    raises a `UsageError` on the first of the three that the table does not have, listing what it has.

    Attributes:
      space: name of the space whose cells are the rows.
      columns: for each (dataset, metric, epochs), float32 percents [15625], read-only.
    """

    space: str
    columns: Mapping[tuple[str, str, int], np.ndarray]

    def query(self, genotype: Genotype, dataset: str = "cifar10", metric: str = "test", epochs: int = 200) -> float:
        """The accuracy of a cell.

        Args:
          genotype: a cell of NAS-Bench-201, with or without ``none``.
          dataset: data set the cell was trained on.
          metric: split the accuracy is on.
          epochs: length of the training schedule.

        Returns:
          Accuracy in percent.

        Raises:
          UsageError: for a genotype of another space, or a column the table does not have.
        """
        return float(self._column(dataset, metric, epochs)[self.index(genotype)])

    def rank(self, genotype: Genotype, dataset: str = "cifar10", metric: str = "test", epochs: int = 200) -> int:
        """The place of a cell among all 15,625: one more than the number of cells that are strictly better.

        Args:
          genotype: a cell of NAS-Bench-201, with or without ``none``.
          dataset: data set the cells were trained on.
          metric: split the accuracy is on.
          epochs: length of the training schedule.

        Returns:
          1 for the best; cells of equal accuracy share the better rank.

        Raises:
          UsageError: for a genotype of another space, or a column the table does not have.
        """
        column = self._column(dataset, metric, epochs)
        return 1 + int(np.count_nonzero(column > column[self.index(genotype)]))

    def oracle(self, dataset: str = "cifar10", metric: str = "test", epochs: int = 200) -> tuple[Genotype, float]:
        """The best cell and its accuracy: what no search can exceed.

        Args:
          dataset: data set the cells were trained on.
          metric: split the accuracy is on.
          epochs: length of the training schedule.

        Returns:
          The cell of the highest accuracy (of equal ones, the lowest row) and that accuracy in percent.

        Raises:
          UsageError: for a column the table does not have.
        """
        column = self._column(dataset, metric, epochs)
        row = int(column.argmax())
        digits = np.unravel_index(row, _SHAPE)
        return Genotype(tuple(OPERATIONS[digit] for digit in digits)), float(column[row])

    def index(self, genotype: Genotype) -> int:
        """The row of a cell; `NASBench201.index` is its twin for selections inside jit.

        Args:
          genotype: a cell of NAS-Bench-201, with or without ``none``.

        Returns:
          Row in 0..15,624.

        Raises:
          UsageError: on ``genotype``, if it is of another space.
        """
        NAS_BENCH_201.check(genotype)
        return int(np.ravel_multi_index([OPERATIONS.index(operation) for operation in genotype.cell], _SHAPE))

    def scores(self, dataset: str = "cifar10", metric: str = "test", epochs: int = 200) -> jax.Array:
        """A column as a device array, for look-ups inside jit by `NASBench201.index`.

        Args:
          dataset: data set the cells were trained on.
          metric: split the accuracy is on.
          epochs: length of the training schedule.

        Returns:
          float32 percents [15625].

        Raises:
          UsageError: for a column the table does not have.
        """
        return jnp.asarray(self._column(dataset, metric, epochs))

    def summary(self, genotype: Genotype) -> dict[str, dict[str, float | int | str]]:
        """What a report says about a cell, after 200 epochs of training.

        Args:
          genotype: a cell of NAS-Bench-201, with or without ``none``.

        Returns:
          For each data set ``{"valid", "test", "metric", "rank", "oracle"}``: both accuracies in percent, ``"test"``,
          the rank by test accuracy and the best test accuracy of any cell. Ready for JSON.

        Raises:
          UsageError: on ``genotype``, if it is of another space.
        """
        return {
            dataset: {
                "valid": self.query(genotype, dataset, "valid"),
                "test": self.query(genotype, dataset, "test"),
                "metric": "test",
                "rank": self.rank(genotype, dataset, "test"),
                "oracle": self.oracle(dataset, "test")[1],
            }
            for dataset in PREFIXES
        }

    def _column(self, dataset: str, metric: str, epochs: int) -> np.ndarray:
        key = (dataset, metric, epochs)
        for i, argument in enumerate(("dataset", "metric", "epochs")):
            accepted = dict.fromkeys(known[i] for known in self.columns if known[:i] == key[:i])
            if key[i] not in accepted:
                raise UsageError(argument, f"{key[i]!r} is not in the table, which has {', '.join(map(str, accepted))}")
        return self.columns[key]


def load_table(path: str | os.PathLike[str]) -> Table:
    """Reads and checks a table file; its form is described at the top of this module.

    Args:
      path: the ``.npz`` file.

    Returns:
      The table, held in memory (1 MB at most).

    Raises:
      UsageError: on ``table``, if the file cannot be read, is not an npz of plain arrays, lacks an array, is
        of another space, or an array has another shape, kind or order of rows, or accuracies that are not
        percents.

    Example:
      >>> load_table("nowhere.npz")
      Traceback (most recent call last):
      gaea_jax.errors.UsageError: table: cannot read nowhere.npz (No such file or directory)
    """
    columns = {
        (dataset, metric, epochs): f"{prefix}_{metric}_{epochs}"
        for dataset, prefix in PREFIXES.items()
        for metric in _METRICS
        for epochs in (200, 12)
    }
    arrays = read_arrays(path, ["op_names", "edges", "ops", *columns.values()])
    required = ["op_names", "edges", "ops", *(name for key, name in columns.items() if key[2] == 200)]
    if missing := [name for name in required if name not in arrays]:
        raise UsageError("table", f"{path} lacks the arrays {', '.join(missing)}")
    _check_rows(path, arrays)
    return Table(
        NAS_BENCH_201.name,
        {key: _percents(path, name, arrays[name]) for key, name in columns.items() if name in arrays},
    )


def _check_rows(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    edges = [f"{node}<-{source}" for node, source in EDGES]
    for name, expected in (("op_names", list(OPERATIONS)), ("edges", edges)):
        found = arrays[name].tolist()
        if found != expected:
            raise UsageError("table", f"{path} is of another space: {name} wants {expected}, got {reprlib.repr(found)}")
    digits = np.stack(np.unravel_index(np.arange(_ROWS), _SHAPE), axis=-1)
    if not np.array_equal(arrays["ops"], digits):
        raise UsageError(
            "table",
            f"{path}: ops wants shape {digits.shape}, in row r the six base-5 digits of r, first edge first",
        )


def _percents(path: str | os.PathLike[str], name: str, values: np.ndarray) -> np.ndarray:
    if values.shape != (_ROWS,) or values.dtype.kind != "f":
        raise UsageError("table", f"{path}: {name} is {values.dtype} {values.shape}; wants float ({_ROWS},)")
    if not (values.min() >= 0 and 1 < values.max() <= 100):
        raise UsageError("table", f"{path}: {name} wants percents, 0 to 100 with none missing")
    values = values.astype(np.float32)
    values.flags.writeable = False
    return values
