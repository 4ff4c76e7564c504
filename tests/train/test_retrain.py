import dataclasses
import importlib
import json
import signal

import chex
import jax
import numpy as np
import pytest

from gaea_jax.data import load_dataset
from gaea_jax.nets import Count, count, network
from gaea_jax.spaces import get_space
from gaea_jax.train import Interrupted, RetrainConfig, retrain

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|skip_connect~2|"
CONFIG = RetrainConfig(genotype=CELL, steps=6, report_every=2, channels=4, cells=1, batch_size=16, learning_rate=0.05)


def trained(config, on_report=None):
    return retrain(config, on_report, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return trained(dataclasses.replace(CONFIG, out=tmp_path_factory.mktemp("retrain") / "run"))


def of_one_run(records):
    return [{k: v for k, v in record.items() if k != "wall_s"} for record in records]


def test_the_accuracy_is_that_of_the_network_on_all_test_images(unbroken):
    space, digits = get_space("nas_bench_201"), load_dataset("digits")
    net = network(space, space.parse(CELL), channels=4, cells=1, num_classes=10)
    x = (digits.test.images / 255.0 - digits.mean[0]) / digits.std[0]
    variables = {"params": unbroken.state.params, **unbroken.state.collections}
    logits = jax.jit(lambda x: net.apply(variables, x, train=False))(x.astype(np.float32))
    right = int((np.argmax(logits, axis=1) == digits.test.labels).sum())
    assert unbroken.test_accuracy == pytest.approx(100 * right / 360, abs=1e-9)
    assert unbroken.size == count(net, (16, 16, 1))


def test_what_a_run_writes(unbroken):
    out = unbroken.config.out
    said = json.loads((out / "result.json").read_text())
    assert said.pop("wall_s") == pytest.approx(unbroken.wall_s, abs=1e-3)
    assert "jax" in said.pop("versions")
    assert said == {
        "space": "nas_bench_201",
        "dataset": "digits",
        "seed": 0,
        "steps": 6,
        "genotype": CELL,
        "test_accuracy": unbroken.test_accuracy,
        "parameters": unbroken.size.parameters,
        "multiply_adds": unbroken.size.multiply_adds,
    }
    assert isinstance(unbroken.size, Count)
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in written] == [2, 4, 6]
    for record in written:
        assert set(record) == {"step", "epoch", "loss", "accuracy", "gradient_norm", "wall_s"}
    (plot,) = (out / "plots").iterdir()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_training_cut_and_resumed_is_bitwise_the_unbroken_one(tmp_path, unbroken):
    # The genotype comes from a file, which is another one when the run is resumed.
    file = tmp_path / "cell.txt"
    file.write_text(CELL + "\n")
    config = dataclasses.replace(CONFIG, genotype=str(file), out=tmp_path / "run")

    def stop(record):
        if record["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        trained(config, stop)
    assert not (config.out / "result.json").exists()
    file.unlink()
    result = trained(dataclasses.replace(config, genotype=str(unbroken.config.out / "result.json"), resume=True))
    chex.assert_trees_all_equal(result.state, unbroken.state)
    assert result.test_accuracy == unbroken.test_accuracy
    assert of_one_run(result.records) == of_one_run(unbroken.records)


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """What a configuration comes to, short of running it: the steps, and ``config.json``."""

    class Stop(Exception):
        pass

    def drive(step, state, source, until, **options):
        raise Stop(until)

    # By name: the function `retrain` hides its module.
    monkeypatch.setattr(importlib.import_module("gaea_jax.train.retrain"), "drive", drive)

    def plan(**fields):
        out = tmp_path / "plan"
        with pytest.raises(Stop) as caught:
            trained(RetrainConfig(channels=4, cells=1, out=out, **fields))
        return caught.value.args[0], json.loads((out / "config.json").read_text())

    return plan


@pytest.mark.parametrize(("preset", "epochs"), [("nas_bench_201", 200), ("nas_bench_201_short", 12)])
def test_a_preset_gives_what_is_not_given(planned, preset, epochs):
    until, config = planned(genotype=CELL, preset=preset, learning_rate=0.3)
    assert until == epochs * 6  # batches of 256 of the 1,437 digits
    found = {name: config[name] for name in ("epochs", "batch_size", "channels", "cells", "learning_rate")}
    assert found == {"epochs": epochs, "batch_size": 256, "channels": 4, "cells": 1, "learning_rate": 0.3}
    assert config["weight_decay"] == 5e-4


def test_steps_stand_in_for_the_epochs_of_a_preset(planned):
    until, config = planned(genotype=CELL, steps=7)
    assert (until, config["steps"], config["epochs"]) == (7, 7, None)


@pytest.mark.parametrize("space", ["nas_bench_201", "nas_bench_201_nozero"])
@pytest.mark.parametrize(
    "content",
    [
        CELL,
        f"  {CELL}\n",
        json.dumps({"space": "nas_bench_201", "cell": [item.split("~")[0] for item in CELL.split("|") if "~" in item]}),
        json.dumps({"space": "nas_bench_201_nozero", "genotype": CELL, "steps": 3}),
    ],
    ids=["text", "text with a line end", "JSON", "result"],
)
def test_a_genotype_may_come_from_a_file(planned, tmp_path, space, content):
    file = tmp_path / "found"
    file.write_text(content)
    _, config = planned(genotype=str(file), space=space, steps=1, batch_size=16)
    assert config["genotype"] == CELL
    assert config["identity"]["--genotype"] == CELL
