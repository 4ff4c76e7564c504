"""A table of NAS-Bench-101 as the truth of a search of NAS-Bench-1Shot1."""

import pathlib

import numpy as np
import pytest

from gaea_jax.benchmarks import truth
from gaea_jax.benchmarks.nas_bench_101 import CellTable, load_cells
from gaea_jax.errors import UsageError
from gaea_jax.spaces import get_space
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_1, SPACE_2, Genotype

C3, C1, POOL = "conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"
# Block 1 alone counts: a chain of one, and the same with what the output reads besides.
CHAIN = Genotype((C3, C1, C1, C1), ((0,), (0, 1), (0, 1), (0, 1), (0, 1)))
OTHER = Genotype((POOL, C1, C1, C1), ((0,), (0, 1), (0, 1), (0, 1), (0, 1)))
ABSENT = Genotype((C1, C1, C1, C1), ((0,), (0, 1), (0, 1), (0, 1), (0, 1)))


@pytest.fixture
def sample() -> dict[str, np.ndarray]:
    """Two cells of the space, and a chain that is none: there the output would read one node."""
    adjacency = np.zeros((3, 7, 7), np.uint8)
    for row, edges in enumerate((((0, 1), (0, 2), (1, 2)), ((0, 1), (0, 2), (1, 2)), ((0, 1), (1, 2)))):
        for source, node in edges:
            adjacency[row, source, node] = 1
    return {
        "num_vertices": np.full(3, 3, np.uint8),
        "adjacency": adjacency,
        "ops": np.array([[0, *[255] * 4], [2, *[255] * 4], [0, *[255] * 4]], np.uint8),
        "epochs": np.array([4, 108]),
        "valid_acc": np.array([[0.5, 0.9], [0.5, 0.8], [0.5, 0.95]], np.float32),
        "params": np.ones(3, np.int32),
    }


def saved(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    np.savez(folder / "table.npz", **arrays)
    return folder / "table.npz"


def test_what_the_table_says_of_a_cell(tmp_path: pathlib.Path, sample: dict[str, np.ndarray]) -> None:
    table = truth(SPACE_1, saved(tmp_path, sample))
    assert isinstance(table, CellTable)
    assert (table.query(CHAIN), table.query(OTHER)) == (pytest.approx(90), pytest.approx(80))
    known = {"metric": "valid", "oracle": pytest.approx(90), "cells": 2}
    assert table.summary(CHAIN) == {"cifar10": {"valid": pytest.approx(90), "rank": 1, **known}}
    assert table.summary(OTHER) == {"cifar10": {"valid": pytest.approx(80), "rank": 2, **known}}
    assert table.query(ABSENT) is None
    assert table.summary(ABSENT) == {"cifar10": None}
    with pytest.raises(UsageError, match="metric: 'test' is not in the table, which has valid"):
        table.query(CHAIN, "test")
    with pytest.raises(UsageError, match="genotype: is not of nas_bench_1shot1_1"):
        table.query(SPACE_2.random(np.random.default_rng(0)))


def test_ranks_are_by_test_accuracy_where_it_is_known(tmp_path: pathlib.Path, sample: dict[str, np.ndarray]) -> None:
    test_acc = np.array([[0.5, 0.7], [0.5, 0.75], [0.5, 0.6]], np.float32)
    table = load_cells(saved(tmp_path, {**sample, "test_acc": test_acc}), SPACE_1)
    found = table.summary(CHAIN)["cifar10"]
    assert found is not None
    assert (found["metric"], found["rank"]) == ("test", 2)
    assert (found["valid"], found["test"], found["oracle"]) == tuple(map(pytest.approx, (90, 70, 75)))
    assert table.query(CHAIN) == pytest.approx(70)
    assert table.query(CHAIN, "valid") == pytest.approx(90)


def test_a_table_may_have_test_accuracies_alone(tmp_path: pathlib.Path, sample: dict[str, np.ndarray]) -> None:
    sample["test_acc"] = sample.pop("valid_acc")
    table = load_cells(saved(tmp_path, sample), SPACE_1)
    assert table.query(CHAIN) == pytest.approx(90)
    found = table.summary(CHAIN)["cifar10"]
    assert found is not None
    assert found.keys() == {"test", "metric", "rank", "oracle", "cells"}


def test_the_cells_of_a_space_can_be_looked_up(tmp_path: pathlib.Path, sample: dict[str, np.ndarray]) -> None:
    table = load_cells(saved(tmp_path, sample), SPACE_1)
    known = [found for cell in SPACE_1.cells() if (found := table.query(cell)) is not None]
    assert sorted(known) == [pytest.approx(80), pytest.approx(90)]


def test_another_table_is_refused(
    tmp_path: pathlib.Path, table_path: pathlib.Path, sample: dict[str, np.ndarray]
) -> None:
    with pytest.raises(UsageError, match=r"table: .* has neither valid_acc nor test_acc"):
        truth(SPACE_1, table_path)
    del sample["num_vertices"]
    with pytest.raises(UsageError, match=r"table: .* lacks the arrays? num_vertices"):
        truth(SPACE_1, saved(tmp_path, sample))


@pytest.mark.data
@pytest.mark.parametrize(("number", "cells"), [(1, 195), (2, 572), (3, 4_023)])
def test_the_measured_sample_has_some_cells_of_each_space(shared_data: pathlib.Path, number: int, cells: int) -> None:
    path = shared_data / "nas_bench_101" / "nb101_sample.npz"
    table = load_cells(path, get_space(f"nas_bench_1shot1_{number}"))
    with np.load(path) as measured:
        expected = np.flatnonzero(measured[f"in_1shot1_space{number}"])
    assert len(table.rows) == cells
    assert sorted(table.rows.tolist()) == expected.tolist()
