import dataclasses
import importlib
import itertools
import json
import pathlib
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.benchmarks import load_table
from gaea_jax.checkpoint import CheckpointError
from gaea_jax.data import first_and_last_half, load_dataset, load_train_valid
from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture, supernet
from gaea_jax.spaces import get_space
from gaea_jax.train import Interrupted, SearchConfig, search
from gaea_jax.train.drive import Run
from gaea_jax.train.evaluate import held_out_batches, spread, supernet_accuracy

CONFIG = SearchConfig(steps=6, report_every=2, channels=4, cells=1, batch_size=8, seed=1)
SPACE = get_space(CONFIG.space)


def searched(config, on_report=None):
    return search(config, on_report, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def found():
    """A search that writes nothing."""
    return searched(CONFIG)


def of_one_run(records):
    """Records without what another run may not share."""
    return [{k: v for k, v in record.items() if k not in ("wall_s", "table")} for record in records]


def test_a_search_with_a_folder_and_a_table(tmp_path, found, table_path):
    seen, out = [], tmp_path / "run"
    result = searched(dataclasses.replace(CONFIG, out=out, table=table_path), seen.append)

    # The same search as without, bit for bit.
    chex.assert_trees_all_equal(result.state, found.state)
    assert result.genotype == found.genotype
    assert of_one_run(result.records) == of_one_run(found.records)
    assert seen == result.records

    table = load_table(table_path)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert written == result.records
    assert [record["step"] for record in written] == [2, 4, 6]
    for record, others in zip(written, (set(), {"agreement"}, {"agreement"}), strict=True):
        assert set(record) == {
            *("step", "epoch", "loss", "accuracy", "gradient_norm", "entropy", "skip_share", "mixture"),
            *("genotype", "table", "wall_s"),
            *others,
        }
        cell = SPACE.parse(record["genotype"])
        assert record["table"] == table.summary(cell)
        assert record["table"]["cifar10"]["test"] == table.query(cell)
        assert record["skip_share"] == pytest.approx(cell.cell.count("skip_connect") / 6)
        mixture = np.array(record["mixture"]["cell"])
        np.testing.assert_allclose(mixture.sum(axis=1), 1, rtol=1e-6)
        assert record["entropy"]["cell"] == pytest.approx(-(mixture * np.log(mixture)).sum(axis=1).mean(), rel=1e-5)
        assert record["epoch"] == record["step"] / 180
    assert written[-1]["genotype"] == str(result.genotype)
    np.testing.assert_array_equal(np.float32(written[-1]["mixture"]["cell"]), result.state.params["arch"]["cell"])

    said = json.loads((out / "result.json").read_text())
    assert said.pop("wall_s") == pytest.approx(result.wall_s, abs=1e-3)
    assert set(said.pop("versions")) >= {"python", "gaea_jax", "jax", "flax", "optax"}
    assert said == {
        "space": "nas_bench_201_nozero",
        "method": "gaea",
        "objective": "single-level",
        "order": "joint",
        "dataset": "digits",
        "seed": 1,
        "steps": 6,
        "genotype": str(result.genotype),
        "derived_from": {"rule": "last", "step": 6},
        "table": table.summary(result.genotype),
        "last": {
            "genotype": str(result.genotype),
            "step": 6,
            "valid_accuracy": None,
            "table": table.summary(result.genotype),
        },
        "best_valid": None,
    }
    config = json.loads((out / "config.json").read_text())
    assert (config["steps"], config["epochs"], config["channels"]) == (6, None, 4)
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "metrics.jsonl", "result.json", "checkpoints", "plots")
    }
    plots = {path.stem: path.read_bytes() for path in (out / "plots").glob("*.png")}
    assert set(plots) == {"loss_accuracy", "entropy", "mixture", "changes", "cell", "truth"}
    assert all(picture.startswith(b"\x89PNG") for picture in plots.values())


def test_without_a_folder_nothing_is_written_and_the_seed_decides(tmp_path, monkeypatch, found):
    monkeypatch.chdir(tmp_path)
    again, other = searched(CONFIG), searched(dataclasses.replace(CONFIG, seed=2))
    assert list(tmp_path.iterdir()) == []
    chex.assert_trees_all_equal(again.state, found.state)
    assert (again.genotype, of_one_run(again.records)) == (found.genotype, of_one_run(found.records))
    assert again.table is None
    assert "table" not in again.records[0]
    for one, two in zip(*map(jax.tree.leaves, (found.state.params, other.state.params)), strict=True):
        # A scale or an offset has the same start under every seed, but not the same gradient.
        assert not jnp.array_equal(one, two)


def test_a_search_cut_and_resumed_is_bitwise_the_unbroken_one(tmp_path, found):
    config = dataclasses.replace(CONFIG, out=tmp_path / "run")

    def stop(record):
        if record["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        searched(config, stop)
    assert caught.value.step == 2
    assert not (config.out / "result.json").exists()
    assert not (config.out / "plots").exists()

    config = dataclasses.replace(config, resume=True)
    with pytest.raises(CheckpointError, match="--seed was 1, now 2"):
        searched(dataclasses.replace(config, seed=2))
    result = searched(config)
    chex.assert_trees_all_equal(result.state, found.state)
    assert of_one_run(result.records) == of_one_run(found.records)
    assert json.loads((config.out / "result.json").read_text())["genotype"] == str(found.genotype)

    # Of a finished run nothing is left to do.
    before = (config.out / "metrics.jsonl").read_text()
    assert searched(config).genotype == found.genotype
    assert (config.out / "metrics.jsonl").read_text() == before


def test_darts_alternating_after_a_warm_up_in_bfloat16_over_the_full_space():
    # 1 / 60 of the 180 steps of an epoch: three steps.
    other = {"space": "nas_bench_201", "method": "darts", "order": "alternating", "arch_warmup_epochs": 1 / 60}
    result = searched(dataclasses.replace(CONFIG, **other, dtype="bfloat16", cutout=4, report_every=1))
    mixtures = [record["mixture"]["cell"] for record in result.records]
    assert mixtures[0] == mixtures[1] == mixtures[2]
    assert all(one != two for one, two in itertools.pairwise(mixtures[2:]))
    np.testing.assert_allclose(np.sum(mixtures[-1], axis=1), np.ones(6), rtol=1e-6)
    for leaf in jax.tree.leaves((result.state.params, result.state.collections, result.state.opt_state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
        assert jnp.isfinite(leaf).all()
    assert result.state.params["arch"]["cell"].shape == (6, 5)
    assert get_space("nas_bench_201").parse(str(result.genotype)) == result.genotype


def test_nasp_goes_on_bitwise_and_says_how_often_its_network_changes(tmp_path, cut_back):
    options = {"tie": "sticky", "complexity_weight": 0.1, "init_noise": 0.1, "inactive_weights": "freeze"}
    config = dataclasses.replace(CONFIG, method="nasp", objective="bilevel", arch_learning_rate=0.2, **options)
    config = dataclasses.replace(config, out=tmp_path / "run")
    found = searched(config)
    result = searched(dataclasses.replace(config, out=cut_back(config.out, 4), resume=True))
    chex.assert_trees_all_equal(result.state, found.state)
    assert of_one_run(result.records) == of_one_run(found.records)
    assert SPACE.decode(result.state.memory) == result.genotype
    assert any(record["changed_edges"] > 0 for record in result.records)
    # It evaluates what it derives.
    assert all(record["valid_accuracy"] == record["derived_accuracy"] for record in result.records)
    assert (config.out / "plots" / "changes.png").exists()


def test_a_bilevel_search_records_the_last_and_the_best_cell(tmp_path):
    split = tmp_path / "split.npz"
    numbers = np.random.default_rng(0).permutation(1437)
    np.savez(split, train=numbers[:1000], valid=numbers[1000:])
    bilevel = {"objective": "bilevel", "split": split, "eval_images": 100, "arch_learning_rate": 3.0}
    config = dataclasses.replace(CONFIG, **bilevel, method="gaea_gdas", out=tmp_path / "run", derive_from="best_valid")
    result = searched(config)
    assert result.config.order == "alternating"
    accuracies = [record["valid_accuracy"] for record in result.records]
    # 12 batches of 8, the last 4 of the 100 images left out.
    assert all(accuracy == pytest.approx(round(accuracy * 96 / 100) / 96 * 100) for accuracy in accuracies)
    best = result.records[int(np.argmax(accuracies))]
    said = json.loads((config.out / "result.json").read_text())
    identity = json.loads((config.out / "config.json").read_text())["identity"]
    assert identity["--split"] == load_train_valid(split, 1437).digest()
    # The file may move, but its images may not change.
    resumed = dataclasses.replace(config, split=split.rename(tmp_path / "moved.npz"), resume=True)
    assert searched(resumed).genotype == result.genotype
    np.savez(resumed.split, train=numbers[:999], valid=numbers[999:])
    with pytest.raises(CheckpointError, match="--split was"):
        searched(resumed)
    assert said["derived_from"] == {"rule": "best_valid", "step": best["step"]}
    assert said["genotype"] == str(result.genotype) == best["genotype"]
    assert said["best_valid"] == {
        "genotype": best["genotype"],
        "step": best["step"],
        "valid_accuracy": max(accuracies),
        "table": None,
    }
    # The derived cell stands for the architecture of a sampling method, so there is nothing to lose.
    assert all(record["derived_accuracy"] == record["valid_accuracy"] for record in result.records)
    assert (said["last"]["step"], said["last"]["genotype"]) == (6, result.records[-1]["genotype"])
    assert result.records[0]["epoch"] == 2 / 125
    by_the_last = result._replace(config=dataclasses.replace(config, derive_from="last"))
    assert by_the_last.to_json()["genotype"] == result.records[-1]["genotype"]


def test_a_report_can_have_both_statistics_of_the_mixture_and_of_the_derived_cell(monkeypatch):
    base = {"batch": 20.0, "running": 40.0}

    def supernet_accuracy(net, batches, statistics):
        assert [len(y) for _, y, _ in batches] == [8] * 8
        return lambda state, mixture: base[statistics] + float(mixture.weights["cell"].max() == 1)

    def drive(step, create, key, source, until, *, report, **options):
        state = create(key)
        record, _ = report(state, {"loss": 1.0, "accuracy": 10.0}, None)
        return Run(state, [{"step": until, **record}], 0.0)

    monkeypatch.setattr("gaea_jax.train.prepare.supernet_accuracy", supernet_accuracy)
    # By name: the function `search` hides its module.
    monkeypatch.setattr(importlib.import_module("gaea_jax.train.search"), "drive", drive)
    config = dataclasses.replace(CONFIG, objective="bilevel", eval_images=64)
    batch = {"valid_accuracy": 20.0, "derived_accuracy": 21.0}
    both = {**batch, "valid_accuracy_running": 40.0, "derived_accuracy_running": 41.0}
    running = {"valid_accuracy": 40.0, "derived_accuracy": 41.0}
    for statistics, expected in (("batch", batch), ("running", running), ("both", both)):
        result = searched(dataclasses.replace(config, eval_statistics=statistics))
        (record,) = result.records
        assert {name: record[name] for name in record if name.startswith(("valid_", "derived_"))} == expected
        assert result.best_valid.valid_accuracy == expected["valid_accuracy"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"stem": "imagenet"}, "stem: must be 'cifar' for nas_bench_201_nozero, not 'imagenet'"),
        ({"stem": "x", "space": "darts", "cells": 3}, "stem: 'x' is unknown; known are cifar, imagenet"),
        ({"eval_statistics": "x"}, "eval_statistics: 'x' is unknown; known are batch, running, both"),
        ({"partial": 0, "method": "pc_darts"}, "partial: must be more than 0, not 0"),
        (
            {"partial": 3, "method": "pc_darts", "space": "darts", "cells": 3},
            "partial: must leave an even part of the 4 channels, so divide 2, not 3",
        ),
        (
            {"method": "gaea_pc_darts"},
            "method: needs partial channels, which nas_bench_201_nozero has not; the DARTS space and NAS-Bench-1Shot1 "
            "have them",
        ),
        ({"tie": "last", "method": "nasp"}, "tie: 'last' is unknown; known are first, sticky"),
        ({"keep": "one"}, "keep: does not apply to the method gaea"),
        ({"entropy_weight": 0.1, "method": "nasp"}, "entropy_weight: does not apply to the method nasp"),
        (
            {"complexity_weight": -1.0, "method": "nasp"},
            "complexity_weight: must be 0 or more, not -1.0",
        ),
        ({"inactive_weights": "drop"}, "inactive_weights: 'drop' is unknown; known are decay, freeze"),
        (
            {"inactive_weights": "freeze"},
            "inactive_weights: must be 'decay' for gaea, which runs all operations",
        ),
        ({"partial": 4}, "partial: does not apply to the method gaea"),
        ({"edge_learning_rate": 0.0}, "edge_learning_rate: must be more than 0, not 0.0"),
        ({"edge_learning_rate": 0.1, "method": "darts"}, "edge_learning_rate: does not apply to the method darts"),
        ({"edge_learning_rate": 0.1, "method": "gdas"}, "edge_learning_rate: does not apply to the method gdas"),
        ({"edge_learning_rate": 0.1}, "space: nas_bench_201_nozero has no weights of edges, which the method learns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, fields, sentence):
    with pytest.raises(UsageError) as caught:
        searched(dataclasses.replace(CONFIG, out=tmp_path / "run", **fields))
    assert str(caught.value) == sentence
    assert list(tmp_path.iterdir()) == []


def test_the_options_of_the_method_reach_its_supernet(monkeypatch):
    class Stop(Exception):
        pass

    def supernet(space, **options):
        raise Stop(options)

    monkeypatch.setattr("gaea_jax.train.prepare.supernet", supernet)
    for fields, expected in (
        ({}, {"stem": "cifar"}),
        ({"method": "gaea_pc_darts", "stem": "imagenet"}, {"stem": "imagenet", "partial": 4}),
        ({"method": "pc_darts", "partial": 2}, {"stem": "cifar", "partial": 2}),
    ):
        with pytest.raises(Stop) as caught:
            searched(dataclasses.replace(CONFIG, space="darts", **fields))
        size = {"channels": 4, "cells": 1, "num_classes": 10, "dtype": jnp.float32}
        assert caught.value.args == ({**size, **expected},)


def test_random_search_derives_by_held_out_accuracy():
    config = dataclasses.replace(CONFIG, steps=2, method="random", objective="bilevel", eval_images=16)
    result = searched(config)
    assert result.state.params["arch"] == {}
    (record,) = result.records
    assert record["entropy"] == {"cell": pytest.approx(np.log(4))}
    digits = load_dataset("digits")
    net = supernet(SPACE, channels=4, cells=1, num_classes=10)
    held_out = held_out_batches(digits, spread(first_and_last_half(1437).valid, 16), 8, jax.devices()[:1])
    accuracy = supernet_accuracy(net, held_out, "batch")
    assert record["valid_accuracy"] == accuracy(result.state, Mixture.derived(SPACE.encode(result.genotype)))


def test_the_temperature_falls_from_the_first_stair_to_the_last(monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def factory(*, temperature):
        seen.extend(float(temperature(step)) for step in (0, 3, 5))
        raise Stop

    monkeypatch.setattr("gaea_jax.train.search_config.get_method", lambda name: factory)
    for fields, expected in (({}, [10.0, 4.06, 0.1]), ({"temperature": 6.0, "final_temperature": 1.0}, [6, 3, 1])):
        with pytest.raises(Stop):
            searched(dataclasses.replace(CONFIG, method="gdas", **fields))
        np.testing.assert_allclose(seen, expected, rtol=1e-5)
        seen.clear()


def test_without_a_length_it_runs_for_25_epochs(monkeypatch, tmp_path):
    class Stop(Exception):
        pass

    def drive(step, create, key, source, until, **options):
        raise Stop(until, options["report_every"])

    monkeypatch.setattr(importlib.import_module("gaea_jax.train.search"), "drive", drive)
    config = SearchConfig(channels=4, cells=1, batch_size=8, out=pathlib.Path(tmp_path, "run"))
    with pytest.raises(Stop) as caught:
        searched(config)
    assert caught.value.args == (25 * 180, 90)
    assert json.loads((config.out / "config.json").read_text())["epochs"] == 25
