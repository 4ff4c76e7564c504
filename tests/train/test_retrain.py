import dataclasses
import importlib
import json
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from gaea_jax.data import load_dataset
from gaea_jax.errors import UsageError
from gaea_jax.nets import Count, count, network
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import Genotype
from gaea_jax.train import Interrupted, RetrainConfig, TrainState, data_parallel, make_train_step, retrain, run
from gaea_jax.train.recipe import PRESETS, USUAL_PRESETS

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|skip_connect~2|"
# By name: the function `retrain` hides its module.
MODULE = importlib.import_module("gaea_jax.train.retrain")
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
    """What a configuration comes to, short of running it: the steps, ``config.json``, and what would run."""

    class Stop(Exception):
        pass

    def drive(step, create, key, source, until, **options):
        plan.step, plan.state, plan.source = step, create(key), source
        raise Stop(until)

    monkeypatch.setattr(MODULE, "drive", drive)

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


class Head(nn.Module):
    """A linear layer, a BatchNorm and droppable hidden units, whose last rate it remembers; an auxiliary head."""

    auxiliary: bool = True
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train, drop_path=0.0):
        hidden = nn.Dense(6, use_bias=False)(x.reshape(len(x), -1))
        hidden = jnp.tanh(nn.BatchNorm(momentum=0.9, use_running_average=not train)(hidden))
        rate = self.variable("seen", "drop_path", jnp.zeros, ())
        if train and not (isinstance(drop_path, float) and drop_path == 0):
            rate.value = jnp.asarray(drop_path, jnp.float32)
            kept = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop_path, (len(x), 1))
            hidden = hidden * kept / (1 - drop_path)
        logits = nn.Dense(self.num_classes, name="main")(hidden)
        if self.auxiliary and (train or self.is_initializing()):
            second = nn.Dense(self.num_classes, name="auxiliary")(hidden)
            return (logits, second) if train else logits
        return logits


def begun(net, tx):
    return TrainState.create(net, tx, (4, 4, 1), jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    x = jax.random.normal(jax.random.key(1), (16, 4, 4, 1))
    return x, jax.random.randint(jax.random.key(2), (16,), 0, 3)


def target_loss(logits, y, smoothing):
    """The cross-entropy with (1 - e) one-hot + e / classes, written out."""
    logs = jax.nn.log_softmax(logits)
    return -((1 - smoothing) * logs[jnp.arange(len(y)), y] + smoothing * logs.mean(axis=1)).mean()


@pytest.mark.parametrize(
    ("accumulate", "weight", "smoothing"), [(1, 0.0, 0.0), (1, 0.4, 0.0), (1, 0.4, 0.1), (4, 0.4, 0.1), (2, 0.0, 0.0)]
)
def test_a_step_moves_along_the_mean_gradient_of_the_parts_of_a_batch(images, accumulate, weight, smoothing):
    net, tx = Head(auxiliary=weight > 0), optax.sgd(0.5)
    state = begun(net, tx)
    x, y = images
    collections, grads, mains, right = state.collections, [], [], []
    for part in range(accumulate):
        own, labels = x[part::accumulate], y[part::accumulate]

        def total(params, own=own, labels=labels, collections=collections):
            found, after = net.apply({"params": params, **collections}, own, train=True, mutable=list(collections))
            logits, second = found if weight else (found, jnp.zeros_like(found))
            main = target_loss(logits, labels, smoothing)
            return main + weight * target_loss(second, labels, smoothing), (main, logits, after)

        gradient, (main, logits, collections) = jax.grad(total, has_aux=True)(state.params)
        grads.append(gradient)
        mains.append(float(main))
        right += (np.argmax(logits, axis=1) == labels).tolist()
    mean = jax.tree.map(lambda *parts: sum(parts) / accumulate, *grads)

    step = make_train_step(net, tx, auxiliary_weight=weight, label_smoothing=smoothing, accumulate=accumulate)
    after, metrics = jax.jit(step)(state, images)
    expected = jax.tree.map(lambda param, gradient: param - 0.5 * gradient, state.params, mean)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(after.collections, dict(collections), rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1
    assert float(metrics["loss"]) == pytest.approx(np.mean(mains), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(100 * np.mean(right), rel=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(mean)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)


def test_every_step_and_part_drops_others_at_the_rate_of_its_step(images):
    seen = []

    class Spy(Head):
        def make_rng(self, name="params"):
            key = super().make_rng(name)
            jax.debug.callback(lambda data: seen.append(data.tobytes()), jax.random.key_data(key))
            return key

    net, tx = Spy(), optax.sgd(0.1)
    step = jax.jit(make_train_step(net, tx, auxiliary_weight=0.4, drop_path=lambda step: 0.1 * step, accumulate=2))
    state = begun(net, tx)
    for i in range(3):
        again = step(state, images)
        state, _ = step(state, images)
        chex.assert_trees_all_equal(again[0], state)
        assert float(state.collections["seen"]["drop_path"]) == pytest.approx(0.1 * i)
    jax.effects_barrier()
    # Three steps of two parts, each made twice.
    assert len(seen) == 12
    assert len(set(seen)) == 6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_over_eight_devices_gives_the_result_of_one(images, accumulate):
    net, tx = Head(), optax.sgd(0.5, 0.9)
    source = jax.tree_util.Partial(lambda batch, i: batch, images)
    ended = []
    for devices in (jax.devices(), jax.devices()[:1]):
        step = make_train_step(
            net, tx, auxiliary_weight=0.4, label_smoothing=0.1, drop_path=lambda step: 0.3, accumulate=accumulate
        )
        step, sharding = data_parallel(step, devices)
        state, placed = jax.device_put((begun(net, tx), source), sharding)
        state, metrics = run(step, state, placed, 3)
        assert all(leaf.sharding.device_set == set(devices) for leaf in jax.tree.leaves(state))
        ended.append((state.params, state.collections, metrics))
    chex.assert_trees_all_close(*jax.device_get(ended), rtol=1e-4, atol=1e-5)


@pytest.fixture
def head(monkeypatch):
    """Has `retrain` train a `Head` instead of the network of the cell; returns what the network was asked to be."""
    asked = []

    def network(space, genotype, *, num_classes, auxiliary=False, **options):
        asked.append({"auxiliary": auxiliary, **options})
        return Head(auxiliary, num_classes)

    monkeypatch.setattr(MODULE, "network", network)
    return asked


DROPPED = RetrainConfig(
    space="darts",
    genotype="DARTS_V2",
    steps=6,
    report_every=2,
    batch_size=16,
    learning_rate=0.05,
    cutout=4,
    drop_path=0.6,
    accumulate=2,
)


def test_a_training_with_drop_path_and_accumulation_goes_on_bitwise(head, tmp_path):
    def stop(record):
        if record["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    unbroken = trained(dataclasses.replace(DROPPED, out=tmp_path / "unbroken"))
    # A stair of six is missing at the end of the ramp.
    assert float(unbroken.state.collections["seen"]["drop_path"]) == pytest.approx(0.6 * 5 / 6)
    assert head[0]["stem"] == "cifar"
    config = dataclasses.replace(DROPPED, out=tmp_path / "cut")
    with pytest.raises(Interrupted):
        trained(config, stop)
    result = trained(dataclasses.replace(config, resume=True))
    chex.assert_trees_all_equal(result.state, unbroken.state)
    assert of_one_run(result.records) == of_one_run(unbroken.records)


def test_the_auxiliary_head_is_trained_and_counted_apart(head, tmp_path):
    result = trained(dataclasses.replace(DROPPED, steps=2, remat=True, out=tmp_path / "run"))
    asked = {"channels": 36, "cells": 20, "dtype": jnp.float32, "stem": "cifar", "shared": False}
    assert head == [{**asked, "auxiliary": True, "remat": True}, {**asked, "auxiliary": False}]
    main = 256 * 6 + 2 * 6 + (6 + 1) * 10
    assert (result.size.parameters, result.parameters_with_auxiliary) == (main, main + (6 + 1) * 10)
    said = json.loads((result.config.out / "result.json").read_text())
    assert (said["parameters"], said["parameters_with_auxiliary"]) == (main, main + 70)
    assert said["test_accuracy"] == result.test_accuracy
    alone = trained(dataclasses.replace(DROPPED, steps=2, auxiliary_weight=0.0, drop_path=0.0))
    assert (alone.size.parameters, alone.parameters_with_auxiliary) == (main, None)
    assert "parameters_with_auxiliary" not in alone.to_json()
    # Nothing was dropped, so that the network was never told a rate.
    assert float(alone.state.collections["seen"]["drop_path"]) == 0


def test_of_many_classes_the_first_five_guesses_count_too(head, monkeypatch, tmp_path):
    monkeypatch.setattr(MODULE, "_TOP_5_ABOVE", 9)
    result = trained(dataclasses.replace(DROPPED, steps=2, out=tmp_path / "run"))
    assert 100 > result.test_accuracy_top_5 > result.test_accuracy
    said = json.loads((result.config.out / "result.json").read_text())
    assert said["test_accuracy_top_5"] == result.test_accuracy_top_5


SPACES = {"nas_bench_201": CELL, "nas_bench_201_nozero": CELL, "darts": "DARTS_V2", "darts_nozero": "DARTS_V2"}


@pytest.mark.parametrize("space", SPACES)
def test_the_space_names_the_preset(head, planned, space):
    _, config = planned(space=space, genotype=SPACES[space], steps=1, batch_size=16, cutout=0)
    assert config["preset"] == ("darts_cifar10" if space.startswith("darts") else "nas_bench_201")
    assert config["identity"]["--preset"] == config["preset"]


def test_every_space_has_a_preset():
    with pytest.raises(UsageError) as caught:
        get_space("nasnet")
    assert set(USUAL_PRESETS) == set(caught.value.sentence.partition("known are ")[2].split(", "))
    assert set(USUAL_PRESETS.values()) <= set(PRESETS)


def optimiser(rate, nesterov=False, clip_norm=None, decay=3e-4):
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.add_decayed_weights(decay), optax.sgd(rate, 0.9, nesterov=nesterov))


def tensorflow_rmsprop(rate):
    """Squares start from 1, epsilon is 1 and within the root, and the momentum sums what the rate has scaled."""

    def init(params):
        return jnp.zeros((), jnp.int32), jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params=None):
        step, squares, sums = state
        squares = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g * g, squares, grads)
        sums = jax.tree.map(lambda m, g, s: 0.9 * m + rate(step) * g / jnp.sqrt(s + 1), sums, grads, squares)
        return jax.tree.map(jnp.negative, sums), (step + 1, squares, sums)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("preset", "tx", "options"),
    [
        (
            "nas_bench_201",
            optimiser(lambda step: 0.05 * (1 + jnp.cos(jnp.pi * step / 100)), nesterov=True, decay=5e-4),
            {},
        ),
        (
            "darts_cifar10",
            optimiser(lambda step: 0.0125 * (1 + jnp.cos(jnp.pi * step / 100)), clip_norm=5.0),
            {"auxiliary_weight": 0.4, "drop_path": lambda step: 0.003 * step},
        ),
        (
            "darts_imagenet",
            # Two of 100 steps up, as five of 250 epochs.
            optimiser(lambda step: jnp.array([0.25, 0.5, 0.5 * 96 / 98])[step], clip_norm=5.0, decay=3e-5),
            {"auxiliary_weight": 0.4, "label_smoothing": 0.1},
        ),
        (
            "nas_bench_101",
            optax.chain(
                optax.add_decayed_weights(1e-4),
                tensorflow_rmsprop(lambda step: 0.1 * (1 + jnp.cos(jnp.pi * step / 100))),
            ),
            {},
        ),
    ],
)
def test_a_preset_decides_the_step(head, planned, preset, tx, options):
    fields = {"cutout": 0, "image_size": 0, "jitter": False, "batch_size": 16, "steps": 100}
    planned(space="darts", genotype="DARTS_V2", preset=preset, **fields)
    net = Head("auxiliary_weight" in options, 10)
    state, other = planned.state, planned.state.replace(opt_state=tx.init(planned.state.params))
    step, expected = jax.jit(planned.step), jax.jit(make_train_step(net, tx, **options))
    for i in range(3):
        batch = planned.source(i)
        state, _ = step(state, batch)
        other, _ = expected(other, batch)
    chex.assert_trees_all_close(state.params, other.params, rtol=1e-5, atol=1e-6)


def test_every_parameter_of_a_darts_network_is_trained_in_bfloat16():
    space = get_space("darts")
    # A cell of few operations compiles fast.
    cell = (
        (("sep_conv_3x3", 0), ("max_pool_3x3", 1)),
        (("skip_connect", 0), ("skip_connect", 1)),
        (("skip_connect", 0), ("skip_connect", 2)),
        (("skip_connect", 1), ("skip_connect", 3)),
    )
    options = {"channels": 2, "cells": 3, "num_classes": 3, "auxiliary": True, "remat": True}
    net, tx = network(space, Genotype(normal=cell, reduce=cell), dtype=jnp.bfloat16, **options), optax.sgd(0.1)
    state = jax.jit(lambda: TrainState.create(net, tx, (32, 32, 1), jax.random.key(0)))()
    x = jax.random.normal(jax.random.key(1), (8, 32, 32, 1))
    step = make_train_step(net, tx, auxiliary_weight=0.4, drop_path=lambda step: 0.3, accumulate=2)
    after, metrics = jax.jit(step)(state, (x, jnp.arange(8) % 3))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_tree_all_finite((after.params, after.collections, metrics))
    for path, leaf in flatten_dict(jax.tree.map(lambda a, b: np.any(a != b), after.params, state.params)).items():
        assert leaf, path
