"""A sample of the cells of NAS-Bench-301, with what its surrogate predicts of them.

The benchmark's 10^18 cells of the DARTS space cannot be tabulated: a surrogate, fitted to 60,000 trainings, predicts
them (`NAS-Bench-301 <https://arxiv.org/abs/2008.09777>`_). **Nothing here was trained**: the accuracies are
predictions, drawn with the surrogate's noise. They serve to compare rankings, such as those of a proxy; a search cannot
be run on a sample so small.
"""

import os
from typing import NamedTuple

import numpy as np

from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.errors import UsageError
from gaea_jax.spaces.darts_genotype import NODES, Genotype


class Sample(NamedTuple):
    """Cells and predictions.

    Attributes:
      genotypes: the cells.
      predicted: float32, the accuracy on CIFAR-10 in percent that was predicted of each.
    """

    genotypes: tuple[Genotype, ...]
    predicted: np.ndarray


def load_sample(path: str | os.PathLike[str]) -> Sample:
    """Reads a sample.

    Args:
      path: ``.npz`` of ``cells`` int [n, 2, 8, 2] (normal and reduction cell, and of each two (input, operation) pairs
        for every node), ``op_names`` text and ``val_accuracy`` float [n], percents.

    Returns:
      The sample.

    Raises:
      UsageError: on ``table``, if the file is not of this form.
    """
    arrays = read_arrays(path, ("cells", "op_names", "val_accuracy"))
    if len(arrays) < 3:
        raise UsageError("table", f"{path} wants the arrays cells, op_names and val_accuracy")
    cells, accuracy = arrays["cells"], arrays["val_accuracy"]
    names = arrays["op_names"].tolist()
    pairs = (len(accuracy), 2, 2 * len(NODES), 2)
    if cells.shape != pairs or cells.dtype.kind not in "iu" or cells[..., 1].max(initial=0) >= len(names):
        raise UsageError(
            "table", f"{path}: cells is {cells.dtype} {cells.shape}; wants numbers of inputs and operations"
        )
    if accuracy.dtype.kind != "f" or not ((accuracy > 0) & (accuracy <= 100)).all():
        raise UsageError("table", f"{path}: val_accuracy wants percents")
    try:
        genotypes = tuple(Genotype(*(_cell(cell, names) for cell in both)) for both in cells.tolist())
    except UsageError as error:
        raise UsageError("table", f"{path} has a cell that is none of the DARTS space: {error.sentence}") from error
    return Sample(genotypes, accuracy.astype(np.float32))


def _cell(pairs: list[list[int]], names: list[str]) -> tuple[tuple[tuple[str, int], ...], ...]:
    named = [(names[operation], source) for source, operation in pairs]
    return tuple((named[2 * node], named[2 * node + 1]) for node in range(len(NODES)))
