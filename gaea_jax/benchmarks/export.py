"""Writes the table of this library from the official files of NATS-Bench, read by the package ``nats_bench``.

The accuracies are means over all training seeds, after the last epoch of a schedule of its own (the 12-epoch numbers
are no cut of the 200-epoch ones). Under the names of the package (`NATS-Bench
<https://arxiv.org/abs/2009.00437>`_), these are the columns of the table, for 200 and 12 epochs:

=============  ===================  ===================================================================
column         data set             accuracy
=============  ===================  ===================================================================
``c10_valid``  ``cifar10-valid``    ``valid-accuracy``: trained on one half of the training images
``c10_test``   ``cifar10``          ``test-accuracy``: trained on all of them
``c100_*``     ``cifar100``         ``valid-accuracy``, ``test-accuracy``: halves of the original test set
``in16_*``     ``ImageNet16-120``   ``valid-accuracy``, ``test-accuracy``: halves of the original validation set
=============  ===================  ===================================================================

Parameters and multiply-adds are left out: the benchmark records those of an equivalent cell for some cells.

The package reads its files with pickle, which runs what it finds in them: use none but the official ones. This module
follows the package's own source and has been run on files made to look like theirs, never on the official ones.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from gaea_jax.benchmarks.tabular import load_table
from gaea_jax.errors import UsageError
from gaea_jax.spaces.nas_bench_201 import EDGES, NAS_BENCH_201, OPERATIONS

_ACCEPTED = "wants NATS-tss-v1_0-3ffb9.pickle.pbz2, or the folder NATS-tss-v1_0-3ffb9-simple"
_SOURCES = {
    "c10_valid": ("cifar10-valid", "valid-accuracy"),
    "c10_test": ("cifar10", "test-accuracy"),
    "c100_valid": ("cifar100", "valid-accuracy"),
    "c100_test": ("cifar100", "test-accuracy"),
    "in16_valid": ("ImageNet16-120", "valid-accuracy"),
    "in16_test": ("ImageNet16-120", "test-accuracy"),
}
_SCHEDULES = ("200", "12")


class Api(Protocol):
    """What is used of ``nats_bench.NATStopology``."""

    def __len__(self) -> int: ...

    def query_index_by_arch(self, arch: str) -> int:
        """The benchmark's own number of a cell, -1 for one it does not have."""

    def get_more_info(self, index: int, dataset: str, *, hp: str, is_random: bool) -> Mapping[str, Any]:
        """What is known of a cell on a data set after the last epoch of the schedule ``hp``."""


def open_nats(file: str | os.PathLike[str]) -> Api:
    """Opens the official files of the topology search space.

    Args:
      file: ``NATS-tss-v1_0-3ffb9.pickle.pbz2``, or the unpacked folder ``NATS-tss-v1_0-3ffb9-simple``. Either is
        held in memory as a whole.

    Returns:
      The ``nats_bench.NATStopology``.

    Raises:
      UsageError: on ``file``, if it does not exist or cannot be read, or the package ``nats_bench`` is missing.
    """
    path = pathlib.Path(file)
    if not path.exists():
        raise UsageError("file", f"{path} does not exist; {_ACCEPTED}")
    try:
        from nats_bench import create
    except ImportError as error:
        raise UsageError("file", "needs the package nats_bench to be read: pip install nats_bench") from error
    try:
        api: Api = create(str(path), "tss", fast_mode=path.is_dir(), verbose=False)
    except Exception as error:  # whatever unpickling another file may raise
        raise UsageError("file", f"{path} cannot be read by nats_bench ({error!r}); {_ACCEPTED}") from error
    return api


def export_nats(api: Api) -> dict[str, np.ndarray]:
    """Collects the arrays of a table.

    Args:
      api: the official benchmark, from `open_nats`.

    Returns:
      The arrays that `gaea_jax.benchmarks.load_table` reads, one row a cell in the order of this library, and
      ``nb201_index``, int32 [15625], the benchmark's own number of each row. Accuracies are float32 percents [15625].

    Raises:
      UsageError: on ``file``, if the benchmark is of another search space or lacks a number.
    """
    cells = list(map(str, NAS_BENCH_201.genotypes()))
    numbers = [api.query_index_by_arch(cell) for cell in cells] if len(api) == len(cells) else []
    if sorted(numbers) != list(range(len(cells))):
        raise UsageError("file", f"does not hold the 15,625 cells of the topology search space; {_ACCEPTED}")
    digits = np.stack(np.unravel_index(np.arange(len(cells)), (len(OPERATIONS),) * len(EDGES)), axis=-1)
    arrays = {
        "op_names": np.array(OPERATIONS),
        "edges": np.array([f"{node}<-{source}" for node, source in EDGES]),
        "ops": digits.astype(np.uint8),
        "nb201_index": np.array(numbers, np.int32),
    }
    for column in _SOURCES:
        for epochs in _SCHEDULES:
            arrays[f"{column}_{epochs}"] = np.empty(len(cells), np.float32)
    # Cell by cell, as the folder of the benchmark has a file for each.
    for row, (cell, number) in enumerate(zip(cells, numbers, strict=True)):
        for column, (dataset, accuracy) in _SOURCES.items():
            for epochs in _SCHEDULES:
                try:
                    # By default the package draws a seed at random, of the 12-epoch schedule.
                    info = api.get_more_info(number, dataset, hp=epochs, is_random=False)
                    arrays[f"{column}_{epochs}"][row] = info[accuracy]
                except Exception as error:  # a missing cell or data set, or a file that cannot be unpickled
                    what = f"the {accuracy} of {cell} on {dataset} after {epochs} epochs"
                    raise UsageError("file", f"lacks {what} ({error!r}); {_ACCEPTED}") from error
    return arrays


def check_new(path: str | os.PathLike[str]) -> None:
    """Refuses to overwrite a file.

    Args:
      path: where a table is to be written.

    Raises:
      UsageError: on ``out``, if there is something.
    """
    if pathlib.Path(path).exists():
        raise UsageError("out", f"{path} exists and is not overwritten; name a new file")


def write_table(
    arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str], read: Callable[[pathlib.Path], Any] = load_table
) -> None:
    """Writes a table file, after it has been read back without complaint.

    Args:
      arrays: the arrays, from `export_nats` or `gaea_jax.benchmarks.export_101.export_nas_bench_101`.
      path: the ``.npz`` file; its folder is made if it is absent.
      read: reads a table of this kind.

    Raises:
      UsageError: on ``out``, if the path exists or cannot be written to; on ``table``, if the arrays make no table.
    """
    path = pathlib.Path(path)
    check_new(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            read(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError("out", f"{path} cannot be written ({error.strerror}); name another") from error
