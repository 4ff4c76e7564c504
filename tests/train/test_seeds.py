"""Several seeds in one program are the searches that each makes alone."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from gaea_jax.checkpoint import CheckpointError
from gaea_jax.errors import UsageError
from gaea_jax.metrics import read_metrics
from gaea_jax.train import SearchConfig, search, search_seeds
from gaea_jax.train.search import prepare
from gaea_jax.train.seeds import Seeds, Sources

CONFIG = SearchConfig(steps=4, report_every=2, channels=4, cells=1, batch_size=8, seed=3)


def without_clock(records):
    return [{name: value for name, value in record.items() if name != "wall_s"} for record in records]


@pytest.fixture(scope="module")
def alone():
    """Each search by itself, as the script without ``--seeds`` makes it."""
    return [search(dataclasses.replace(CONFIG, seed=seed), devices=jax.devices()[:1]) for seed in range(3, 6)]


def test_each_search_makes_the_steps_that_it_makes_alone(alone, tmp_path):
    seen = []
    config = dataclasses.replace(CONFIG, out=tmp_path / "run")
    results = search_seeds(config, 2, seen.append, jax.devices()[:2])
    assert [record["step"] for record in seen] == [2, 4]
    for number, (found, expected) in enumerate(zip(results, alone, strict=False)):
        chex.assert_trees_all_equal(jax.device_get(found.state), jax.device_get(expected.state))
        assert without_clock(found.records) == without_clock(expected.records)
        assert without_clock(record["seeds"][number] for record in seen) == [
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
        search_seeds(config, 3, cut, devices)
    with pytest.raises(CheckpointError, match="--seeds was 3, now 4"):
        search_seeds(dataclasses.replace(config, resume=True), 4, devices=devices)
    # A report that came after the checkpoint is written again.
    with open(tmp_path / "run" / "seed-3" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3}\n')
    results = search_seeds(dataclasses.replace(config, resume=True), 3, devices=devices)
    assert all(leaf.devices() == {devices[0]} for leaf in jax.tree.leaves(results[0].state))
    for number, (found, expected) in enumerate(zip(results, alone, strict=False)):
        chex.assert_trees_all_equal(jax.device_get(found.state), jax.device_get(expected.state))
        written = read_metrics(tmp_path / "run" / f"seed-{number + 3}" / "metrics.jsonl")
        assert without_clock(written) == without_clock(expected.records)


def test_what_the_sources_have_in_common_is_held_once():
    ready = prepare(dataclasses.replace(CONFIG, dataset="digits"), jax.devices()[:1])
    keys = [jax.random.key(seed) for seed in (3, 4, 5)]
    single = [ready.source(key) for key in keys]
    together = Sources.of(single)
    images = sum(leaf.nbytes for leaf in jax.tree.leaves(together) if leaf.ndim == 4)
    assert images == single[0].weights.images.nbytes
    for step in (0, 5):
        batches = together(step)
        for number, source in enumerate(single):
            chex.assert_trees_all_equal(jax.tree.map(lambda leaf, number=number: leaf[number], batches), source(step))


def test_states_are_stacked_and_split():
    ready = prepare(CONFIG, jax.devices()[:1])
    states = [ready.create(jax.random.key(seed)) for seed in (3, 4)]
    seeds = Seeds.stack(states)
    assert seeds.step == 0
    for found, expected in zip(seeds.split(), states, strict=True):
        chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    ("seeds", "fields", "sentence"),
    [
        (0, {}, "seeds: must be more than 0, not 0"),
        (2, {"stream": True}, "stream: is for one seed at a time; several share the images in memory"),
    ],
)
def test_what_cannot_be_shared_is_refused(seeds, fields, sentence, tmp_path):
    with pytest.raises(UsageError) as caught:
        search_seeds(dataclasses.replace(CONFIG, out=tmp_path / "run", **fields), seeds)
    assert str(caught.value) == sentence
    assert not (tmp_path / "run").exists()
