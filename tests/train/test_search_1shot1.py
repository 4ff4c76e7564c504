"""Searches of NAS-Bench-1Shot1: all choices are learnt, and what cannot search them says so."""

import dataclasses
import pathlib

import chex
import jax
import numpy as np
import pytest

from experiments.search import show
from gaea_jax.benchmarks import truth
from gaea_jax.errors import UsageError
from gaea_jax.methods.random_search import random_search
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_2
from gaea_jax.spaces.nas_bench_101 import OPERATIONS
from gaea_jax.train import SearchConfig, retrain, search
from gaea_jax.train.genotype import read_genotype
from gaea_jax.train.retrain import RetrainConfig

TRANSIT = ("entrannas", "gaea_entrannas", "entrannas_dst", "gaea_entrannas_dst")
CONFIG = SearchConfig(
    space="nas_bench_1shot1_2",
    method="gaea_pc_darts",
    objective="bilevel",
    steps=6,
    report_every=2,
    channels=4,
    cells=3,
    batch_size=8,
    eval_images=16,
)


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
    """A table of all cells of the space, each of another accuracy."""
    cells = SPACE_2.cells()
    adjacency, operations = np.zeros((len(cells), 7, 7), np.uint8), np.full((len(cells), 5), 255, np.uint8)
    for row, cell in enumerate(cells):
        nodes = len(cell.operations) + 2
        adjacency[row, :nodes, :nodes] = cell.matrix()
        operations[row, : nodes - 2] = [OPERATIONS.index(operation) for operation in cell.operations]
    arrays = {
        "num_vertices": np.array([len(cell.operations) + 2 for cell in cells], np.uint8),
        "adjacency": adjacency,
        "ops": operations,
        "epochs": np.array([108]),
        "valid_acc": np.linspace(0.5, 0.9, len(cells), dtype=np.float32)[:, None],
        "params": np.ones(len(cells), np.int32),
    }
    np.savez(tmp_path / "table.npz", **arrays)
    return tmp_path / "table.npz"


def test_a_search_learns_all_choices_and_resumes(
    tmp_path: pathlib.Path, table: pathlib.Path, cut_back: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    result = search(dataclasses.replace(CONFIG, table=table, out=tmp_path / "run"), devices=jax.devices()[:1])
    last = result.records[-1]
    assert last["entropy"].keys() == SPACE_2.choices.keys()
    start = {name: choice.uniform() for name, choice in SPACE_2.choices.items()}
    for name, weights in result.state.params["arch"].items():
        assert float(np.abs(weights - start[name]).max()) > 1e-6
    assert "skip_share" not in last
    assert {"valid_accuracy", "derived_accuracy"} <= last.keys()
    known = truth(SPACE_2, table)
    assert [record["table"] for record in result.records] == [
        known.summary(SPACE_2.parse(record["genotype"])) for record in result.records
    ]
    found = result.table and result.table["cifar10"]
    assert found
    show(result)
    sentence = f"cifar10: valid {found['valid']:.2f} %, rank {found['rank']:,} of the {found['cells']:,} in the table"
    assert f"{sentence}, best 90.00 %" in capsys.readouterr().out
    assert (tmp_path / "run" / "plots" / "cell.png").exists()
    assert (tmp_path / "run" / "plots" / "truth.png").exists()
    space, genotype = read_genotype(str(tmp_path / "run" / "result.json"))
    assert (space, genotype) == (SPACE_2, result.genotype)

    cut = cut_back(tmp_path / "run", 4)
    again = search(dataclasses.replace(CONFIG, table=table, out=cut, resume=True), devices=jax.devices()[:1])
    chex.assert_trees_all_equal(again.state, result.state)


def test_a_cell_is_trained_by_itself(tmp_path: pathlib.Path) -> None:
    genotype = SPACE_2.random(np.random.default_rng(0))
    config = RetrainConfig(genotype=str(genotype), steps=2, channels=4, cells=1, batch_size=8, out=tmp_path / "run")
    result = retrain(config, devices=jax.devices()[:1])
    assert (result.config.space, result.config.preset, result.genotype) == (SPACE_2.name, "nas_bench_101", genotype)
    assert read_genotype(str(tmp_path / "run" / "result.json")) == (SPACE_2, genotype)
    with pytest.raises(UsageError, match="nesterov: is for the optimizer 'sgd', not 'rmsprop'"):
        retrain(RetrainConfig(genotype=str(genotype), steps=1, nesterov=True))
    with pytest.raises(UsageError, match="optimizer: 'adam' is unknown; known are sgd, rmsprop"):
        retrain(RetrainConfig(genotype=str(genotype), steps=1, optimizer="adam"))
    with pytest.raises(UsageError, match="drop_path: must be 0 for cells of NAS-Bench-101"):
        retrain(RetrainConfig(genotype=str(genotype), steps=1, drop_path=0.1))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gdas", {}),
        ("gaea_gdas", {}),
        ("nasp", {}),
        *((name, {}) for name in TRANSIT),
        *((name, {"engine": "all", "shared": False}) for name in TRANSIT),
        ("entrannas", {"engine": "all", "shared": False, "selection": "connections"}),
    ],
)
def test_methods_of_other_cells_are_refused(method: str, options: dict, tmp_path: pathlib.Path) -> None:
    said = r"space: nas_bench_1shot1_2 (lets nodes read several others \(inputs, output\)|does not choose the edges)"
    with pytest.raises(UsageError, match=rf"^(method: needs engine cells|{said})"):
        search(dataclasses.replace(CONFIG, method=method, out=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_random_search_draws_cells_of_the_space() -> None:
    config = dataclasses.replace(CONFIG, method="random", steps=2, inactive_weights="freeze")
    result = search(config, devices=jax.devices()[:1])
    SPACE_2.check(result.genotype)
    method = random_search()
    draws = [
        SPACE_2.decode(method.mixture(SPACE_2, {}, {}, jax.random.key(seed), 0, "weights").active or {})
        for seed in range(20)
    ]
    assert len(set(draws)) > 15
