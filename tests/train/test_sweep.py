"""Several searches in one program are what each makes alone."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.checkpoint import CheckpointError
from gaea_jax.errors import UsageError
from gaea_jax.metrics import read_metrics
from gaea_jax.train import SearchConfig, search, sweep
from gaea_jax.train.prepare import prepare
from gaea_jax.train.sweep import Runs, Sources

CONFIG = SearchConfig(steps=4, report_every=2, channels=4, cells=1, batch_size=8, seed=3)


def of_seeds(config, count):
    return [dataclasses.replace(config, seed=config.seed + number) for number in range(count)]


def without_clock(records):
    return [{name: value for name, value in record.items() if name != "wall_s"} for record in records]


@pytest.fixture(scope="module")
def alone():
    """Each search by itself, as the script without ``--seeds`` makes it."""
    return [search(config, devices=jax.devices()[:1]) for config in of_seeds(CONFIG, 3)]


def test_each_search_makes_the_steps_that_it_makes_alone(alone, tmp_path):
    seen = []
    config = dataclasses.replace(CONFIG, out=tmp_path / "run")
    results = sweep(of_seeds(config, 2), seen.append, jax.devices()[:2])
    assert [record["step"] for record in seen] == [2, 4]
    for number, (found, expected) in enumerate(zip(results, alone, strict=False)):
        chex.assert_trees_all_equal(jax.device_get(found.state), jax.device_get(expected.state))
        assert without_clock(found.records) == without_clock(expected.records)
        assert without_clock(record["runs"][number] for record in seen) == [
            {name: value for name, value in record.items() if name not in ("step", "wall_s")}
            for record in expected.records
        ]
        own = tmp_path / "run" / f"seed-{number + 3}"
        assert read_metrics(own / "metrics.jsonl") == found.records
        result = json.loads((own / "result.json").read_text())
        assert (result["seed"], result["genotype"]) == (number + 3, str(expected.genotype))
        assert json.loads((own / "config.json").read_text())["seed"] == number + 3
        assert len(list((own / "plots").glob("*.png"))) > 2
    assert not np.array_equal(results[0].state.params["arch"]["cell"], results[1].state.params["arch"]["cell"])


def test_a_cut_run_goes_on_bitwise_on_as_many_devices_as_divide_the_seeds(alone, tmp_path):
    class Cut(Exception):
        pass

    def cut(record):
        raise Cut

    # Two devices do not divide three seeds, which one device then makes one after another.
    config, devices = dataclasses.replace(CONFIG, out=tmp_path / "run"), jax.devices()[:2]
    with pytest.raises(Cut):
        sweep(of_seeds(config, 3), cut, devices)
    with pytest.raises(CheckpointError, match="--sweep was seed-3, seed-4, seed-5, now seed-3, seed-4, seed-5, seed-6"):
        sweep(of_seeds(dataclasses.replace(config, resume=True), 4), devices=devices)
    # A report that came after the checkpoint is written again.
    with open(tmp_path / "run" / "seed-3" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3}\n')
    results = sweep(of_seeds(dataclasses.replace(config, resume=True), 3), devices=devices)
    assert all(leaf.devices() == {devices[0]} for leaf in jax.tree.leaves(results[0].state))
    for number, (found, expected) in enumerate(zip(results, alone, strict=False)):
        chex.assert_trees_all_equal(jax.device_get(found.state), jax.device_get(expected.state))
        written = read_metrics(tmp_path / "run" / f"seed-{number + 3}" / "metrics.jsonl")
        assert without_clock(written) == without_clock(expected.records)


def test_what_the_sources_have_in_common_is_held_once():
    ready = prepare(dataclasses.replace(CONFIG, dataset="digits"), jax.devices()[:1])
    keys = [jax.random.key(seed) for seed in (3, 4, 5)]
    single = [ready.source(ready.images, key) for key in keys]
    together = Sources.of(single)
    images = sum(leaf.nbytes for leaf in jax.tree.leaves(together) if leaf.ndim == 4)
    assert images == single[0].weights.images.nbytes
    for step in (0, 5):
        batches = together(step)
        for number, source in enumerate(single):
            chex.assert_trees_all_equal(jax.tree.map(lambda leaf, number=number: leaf[number], batches), source(step))


def test_states_are_stacked_and_split():
    ready = prepare(CONFIG, jax.devices()[:1])
    keys = [jax.random.key(seed) for seed in (3, 4)]
    states = [ready.create(key) for key in keys]
    runs = Runs(jax.jit(jax.lax.map, static_argnums=0)(ready.create, jnp.stack(keys)))
    assert runs.step == 0
    for found, expected in zip(runs.split(), states, strict=True):
        chex.assert_trees_all_equal(found, expected)


def test_learning_rates_share_a_program(tmp_path):
    config = dataclasses.replace(CONFIG, out=tmp_path / "run", steps=2)
    rates = [{"learning_rate": 0.1, "arch_learning_rate": 0.3}, {"arch_learning_rate": 0.5}]
    configs = [dataclasses.replace(config, **one) for one in rates]
    results = sweep(configs, devices=jax.devices()[:2])
    names = ["seed-3-learning-rate-0.1-arch-learning-rate-0.3", "seed-3-learning-rate-0.025-arch-learning-rate-0.5"]
    for found, one, name in zip(results, configs, names, strict=True):
        alone = search(dataclasses.replace(one, out=None), devices=jax.devices()[:1])
        chex.assert_trees_all_equal(jax.device_get(found.state), jax.device_get(alone.state))
        assert found.config.arch_learning_rate == one.arch_learning_rate
        written = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert (written["learning_rate"], written["arch_learning_rate"]) == (one.learning_rate, one.arch_learning_rate)
    assert not np.array_equal(results[0].state.params["arch"]["cell"], results[1].state.params["arch"]["cell"])


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ({"stream": True}, {"stream": True}, "stream: is for one search at a time; several share the images in memory"),
        ({}, {"batch_size": 16}, "batch_size: is one for a whole sweep, not both 8 and 16"),
        ({}, {"learning_rate": 0.0}, "learning_rate: must be more than 0, not 0.0"),
        ({"method": "random"}, {"method": "random", "arch_learning_rate": 0.1}, "arch_learning_rate: does not apply"),
    ],
)
def test_what_is_no_sweep_is_refused(first, second, sentence, tmp_path):
    config = dataclasses.replace(CONFIG, out=tmp_path / "run")
    with pytest.raises(UsageError, match=sentence):
        sweep([dataclasses.replace(config, **first), dataclasses.replace(config, seed=4, **second)])
    assert not (tmp_path / "run").exists()


def test_a_sweep_has_runs_and_all_of_them_differ():
    for configs in ([], [CONFIG, CONFIG]):
        with pytest.raises(ValueError, match="no two of them equal"):
            sweep(configs)
