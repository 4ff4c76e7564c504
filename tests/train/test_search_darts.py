"""Whole searches of DARTS cells, compiled and run: what they write, and that they go on where they were cut."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from gaea_jax.spaces.darts import DARTS
from gaea_jax.train import SearchConfig, search

# Of the eight operations these differ in kind, and the others only take longer to compile.
SPACE = DARTS("darts", ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3"))
# Three layers are the fewest with a cell of either kind.
CONFIG = SearchConfig(
    space="darts",
    method="gaea_pc_darts",
    objective="bilevel",
    steps=4,
    report_every=2,
    channels=8,
    cells=3,
    batch_size=8,
    arch_learning_rate=30.0,
    edge_learning_rate=30.0,
    eval_images=16,
    eval_statistics="both",
)
ACCURACIES = {"valid_accuracy", "derived_accuracy", "valid_accuracy_running", "derived_accuracy_running"}


@pytest.fixture(scope="module", autouse=True)
def few_operations():
    with pytest.MonkeyPatch.context() as patch:
        spaces = {"darts": SPACE, "darts_nozero": DARTS("darts_nozero", SPACE.operations[1:])}
        patch.setattr("gaea_jax.train.prepare.get_space", spaces.__getitem__)
        yield


def searched(config, on_report=None):
    return search(config, on_report, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return searched(dataclasses.replace(CONFIG, out=tmp_path_factory.mktemp("darts") / "run"))


def test_what_a_search_of_darts_cells_writes(found):
    out = found.config.out
    said = json.loads((out / "result.json").read_text())
    assert said["space"] == "darts" and SPACE.parse(said["genotype"]) == found.genotype
    assert {path.name for path in (out / "plots").iterdir()} == {
        *("loss_accuracy.png", "entropy.png", "mixture.png", "discretisation.png", "changes.png"),
        *("normal.png", "normal.dot", "reduce.png", "reduce.dot"),
    }
    first, last = found.records
    for record in (first, last):
        assert record.keys() >= ACCURACIES
        assert all(0 <= record[name] <= 100 for name in ACCURACIES)
        assert record["entropy"].keys() == record["mixture"].keys() == SPACE.choices.keys()
    # Both kinds of cell and both kinds of table learn.
    for name, choice in SPACE.choices.items():
        assert np.shape(last["mixture"][name]) == choice.shape
        assert last["entropy"][name] < first["entropy"][name]


def check_going_on(found, cut_back):
    """What goes on from the first checkpoint is the unbroken search."""
    out = cut_back(found.config.out, 2)
    result = searched(dataclasses.replace(found.config, out=out, resume=True))
    chex.assert_trees_all_equal(result.state, found.state)
    assert [{**record, "wall_s": 0} for record in result.records] == [
        {**record, "wall_s": 0} for record in found.records
    ]


def test_a_search_with_partial_channels_goes_on_bitwise(found, cut_back):
    check_going_on(found, cut_back)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("entrannas", {"final_temperature": 0.5, "inactive_weights": "freeze", "shared": False}),
        ("gaea_entrannas_dst", {"threshold": 0.9, "threshold_learning_rate": 0.1, "sparsity_weight": 0.1}),
    ],
)
def test_engine_and_transit_cells_go_on_bitwise(tmp_path, cut_back, method, options):
    sparse = {
        "space": "darts_nozero",
        "method": method,
        "arch_learning_rate": 1.0,
        "edge_learning_rate": None,
        **options,
    }
    config = dataclasses.replace(CONFIG, eval_statistics="batch", out=tmp_path / "run", **sparse)
    result = searched(config)
    check_going_on(result, cut_back)
    first, last = result.records
    assert "agreement" not in first and 0 <= last["agreement"] <= 1
    assert ("connections" in last) == (config.out / "plots" / "sparsification.png").exists() == ("dst" in method)
    if "connections" in last:
        kept = [len(pairs) for cell in (result.genotype.normal, result.genotype.reduce) for pairs in cell]
        assert [*last["connections"]["normal"], *last["connections"]["reduce"]] == kept
        assert min(kept) >= 1
