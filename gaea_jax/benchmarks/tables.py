"""How good the cells of a search space truly are: which table says it of which space."""

import functools
from typing import Any, Protocol

from gaea_jax.benchmarks.nas_bench_101 import load_cells
from gaea_jax.benchmarks.signal import Path
from gaea_jax.benchmarks.tabular import load_table
from gaea_jax.errors import UsageError
from gaea_jax.spaces.nas_bench_1shot1 import NASBench1Shot1
from gaea_jax.spaces.nas_bench_201 import NASBench201


class Truth(Protocol):
    """A table of measured accuracies, as a search by gradient reads it."""

    def summary(self, genotype: Any) -> dict[str, Any]:
        """What a report says of a cell.

        Args:
          genotype: a cell of the space.

        Returns:
          For each data set its accuracies in percent, ``valid`` and ``test`` or one of them; ``metric``, which of them
          the ``rank`` and the best accuracy, ``oracle``, are of. None where the table does not have the cell.
        """


@functools.singledispatch
def truth(space: Any, path: Path) -> Truth:
    """Reads the table of a search space.

    Args:
      space: the search space; one of NAS-Bench-201 or of NAS-Bench-1Shot1.
      path: see `load_table`, and of NAS-Bench-1Shot1 `gaea_jax.benchmarks.nas_bench_101.load_cells`.

    Returns:
      The table.

    Raises:
      UsageError: on ``table``, if there is none for the space, or the file is not of its form.
    """
    raise UsageError("table", f"there is none for {space.name}; NAS-Bench-201 and NAS-Bench-1Shot1 have one")


@truth.register
def _nas_bench_201(space: NASBench201, path: Path) -> Truth:
    return load_table(path)


@truth.register
def _nas_bench_1shot1(space: NASBench1Shot1, path: Path) -> Truth:
    return load_cells(path, space)
