import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.data import StoredSplit, search_source
from gaea_jax.errors import UsageError
from gaea_jax.methods import gaea
from gaea_jax.nets import supernet
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces.nas_bench_201 import NASBench201
from gaea_jax.train import SearchState, data_parallel, make_search_step, run
from gaea_jax.train.recipe import sgd

LOOPS = ("python", "scan")
STREAMS = {"objective": "single-level", "order": "alternating"}


@pytest.fixture(scope="module")
def step(tiny):
    return tiny.step(order="alternating")


@pytest.fixture(scope="module")
def source(dataset):
    return search_source(dataset, jax.random.key(1), 8, **STREAMS)


def in_chunks(step, state, source, stops, loop):
    for stop in stops:
        state, _ = run(step, state, source, stop, loop=loop)
    return state


def test_the_loops_agree_and_average_the_metrics(tiny, step, source):
    state, metrics = tiny.state(), []
    for i in range(5):
        state, one = jax.jit(step)(state, source(i))
        metrics.append(one)
    mean = {name: np.mean([one[name] for one in metrics]) for name in metrics[0]}
    for loop in LOOPS:
        after, found = run(step, tiny.state(), source, 5, loop=loop)
        assert int(after.step) == 5
        chex.assert_trees_all_close(after.params, state.params, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(after.collections, state.collections, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(found, mean, rtol=1e-5)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("stops", [(1, 2, 3, 4, 5, 6, 7), (3, 7), (1, 6, 7)], ids=str)
def test_a_run_in_chunks_is_bitwise_the_unbroken_one(tiny, step, source, loop, stops):
    unbroken, _ = run(step, tiny.state(), source, 7, loop=loop)
    chex.assert_trees_all_equal(in_chunks(step, tiny.state(), source, stops, loop), unbroken)


class Records(list):
    def __getitems__(self, keys):
        return [self[key] for key in keys]


def test_a_stream_runs_in_a_python_loop_as_the_source_on_the_device(tiny, step, source, dataset):
    images, labels = dataset.train
    records = Records({"image": image, "label": label} for image, label in zip(images, labels, strict=True))
    stored = dataclasses.replace(dataset, train=StoredSplit("noise", "train", records, dataset.train.image_shape))
    python, metrics = run(step, tiny.state(), source, 3, loop="python")
    with search_source(stored, jax.random.key(1), 8, **STREAMS) as stream:
        for loop in ("python", "auto"):
            streamed, found = run(step, tiny.state(), stream, 3, loop=loop)
            chex.assert_trees_all_equal((streamed, found), (python, metrics))
        with pytest.raises(UsageError, match='loop: "scan" needs all images in memory; for a stream it is "python" or'):
            run(step, tiny.state(), stream, 3, loop="scan")


def test_chunks_of_any_length_share_one_program(tiny, source):
    traced = []

    def counting(state, batch):
        traced.append(state)
        return plain(state, batch)

    plain = tiny.step(order="joint")
    in_chunks(counting, tiny.state(), source, (1, 2, 5), "python")
    assert len(traced) == 1
    in_chunks(counting, tiny.state(), source, (1, 2), "scan")
    before = len(traced)
    in_chunks(counting, tiny.state(), source, (1, 2, 5, 9), "scan")
    in_chunks(counting, tiny.state(), source, (1, 3), "auto")
    assert len(traced) == before


@pytest.mark.parametrize("loop", LOOPS)
def test_the_buffers_of_the_state_are_donated(tiny, step, source, loop):
    state = tiny.state()
    run(step, state, source, 2, loop=loop)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.collections, state.step)))


def test_an_unknown_loop_and_a_run_of_no_step_are_refused(tiny, step, source):
    with pytest.raises(UsageError, match="loop: 'while' is unknown; known are auto, python, scan"):
        run(step, tiny.state(), source, 2, loop="while")
    state, _ = run(step, tiny.state(), source, 2)
    with pytest.raises(UsageError, match="until: must be more than the 2 steps already made, got 2"):
        run(step, state, source, 2)


def test_a_batch_spread_over_eight_devices_gives_the_result_of_one():
    space, method = NASBench201("small", ("skip_connect", "nor_conv_1x1")), gaea()
    net = supernet(space, channels=4, cells=1, num_classes=3)
    tx = search_optimizer(
        weights=sgd(0.025, momentum=0.9, weight_decay=3e-4, clip_norm=5.0), arch=method.optimizer(space)
    )
    create = jax.jit(lambda: SearchState.create(net, space, method, tx, (8, 8, 1), jax.random.key(0)))
    xs = jax.random.normal(jax.random.key(1), (3, 16, 8, 8, 1))
    source = jax.tree_util.Partial(lambda xs, i: {"weights": (xs[i], jnp.arange(16) % 3)}, xs)
    ended = []
    for devices in (jax.devices(), jax.devices()[:1]):
        step, sharding = data_parallel(make_search_step(net, space, method, tx), devices)
        state, placed = jax.device_put((create(), source), sharding)
        state, metrics = run(step, state, placed, 3)
        for leaf in jax.tree.leaves(state):
            assert leaf.sharding.device_set == set(devices)
            assert leaf.is_fully_replicated
        ended.append((state.params, state.collections, metrics))
    chex.assert_trees_all_close(*jax.device_get(ended), rtol=1e-4, atol=1e-5)
