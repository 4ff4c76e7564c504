import pathlib

import numpy as np
import pytest

from gaea_jax.benchmarks.nas_bench_301 import load_sample
from gaea_jax.errors import UsageError
from gaea_jax.spaces.darts_genotype import OPERATIONS

NAMES = np.array(OPERATIONS[1:])
CELL = [[0, 2], [1, 3], [0, 0], [2, 4], [1, 5], [3, 6], [0, 1], [4, 2]]


def saved(folder: pathlib.Path, **changed: np.ndarray) -> pathlib.Path:
    arrays = {
        "cells": np.array([[CELL, CELL[::-1][1::-1] + CELL[2:]]] * 2, np.uint8),
        "op_names": NAMES,
        "val_accuracy": np.array([93.0, 94.5], np.float32),
    }
    path = folder / "sample.npz"
    np.savez(path, **{**arrays, **changed})
    return path


def test_cells_are_read_pair_by_pair(tmp_path: pathlib.Path) -> None:
    path = saved(tmp_path, cells=np.array([[CELL, CELL]] * 2, np.uint8))
    sample = load_sample(path)
    assert sample.predicted.tolist() == [93.0, 94.5]
    assert sample.genotypes[0].normal[0] == (("skip_connect", 0), ("sep_conv_3x3", 1))
    assert sample.genotypes[0].normal[3] == (("avg_pool_3x3", 0), ("skip_connect", 4))
    assert sample.genotypes[0] == sample.genotypes[1]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"cells": np.zeros((2, 2, 8), np.uint8)}, "cells is uint8"),
        ({"cells": np.full((2, 2, 8, 2), 7, np.uint8)}, "wants numbers of inputs and operations"),
        ({"val_accuracy": np.array([93.0, 945.0])}, "val_accuracy wants percents"),
        ({}, "has a cell that is none of the DARTS space: "),
    ],
)
def test_another_form_is_refused(tmp_path: pathlib.Path, changed: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(UsageError, match="table: .*" + sentence):
        load_sample(saved(tmp_path, **changed))


def test_a_file_without_its_arrays_is_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "other.npz", cells=np.zeros(3))
    with pytest.raises(UsageError, match=r"table: .* wants the arrays cells"):
        load_sample(tmp_path / "other.npz")


@pytest.mark.data
def test_the_measured_sample_is_as_described(shared_data: pathlib.Path) -> None:
    sample = load_sample(shared_data / "nas_bench_suite_zero" / "zc_nb301.npz")
    assert len(sample.genotypes) == len(set(sample.genotypes)) == 1_218
    assert 90.6 < sample.predicted.min() < sample.predicted.max() < 94.6
