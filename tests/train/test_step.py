import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from gaea_jax.errors import UsageError
from gaea_jax.methods import darts, entrannas, entrannas_dst, gaea, nasp, random_search
from gaea_jax.nets import Mixture, active_parameters, supernet
from gaea_jax.optim import freeze_inactive, search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import DARTS
from gaea_jax.spaces.nas_bench_201 import NASBench201
from gaea_jax.train import SearchState, accuracy, cross_entropy, make_search_step
from gaea_jax.train.recipe import sgd

ORDERS = ("joint", "alternating")
SPACE = get_space("nas_bench_201_nozero")
FEW = DARTS("tiny", ("avg_pool_3x3", "dil_conv_3x3"), ("skip_connect", "avg_pool_3x3"))
IMAGE = (4, 4, 1)

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def loss(net, params, collections, batch):
    """The loss and the new collections, spelt out."""
    x, y = batch
    variables = {"params": params["weights"], **collections}
    logits, collections = net.apply(variables, x, Mixture(params["arch"]), train=True, mutable=["batch_stats"])
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]), collections


def gradient(tiny, state, batch):
    value = jax.jit(jax.grad(lambda params: loss(tiny.net, params, state.collections, batch), has_aux=True))
    return value(state.params)


def exponentiated(arch, grad, rate=0.1):
    product = np.asarray(arch, np.float64) * np.exp(-rate * np.asarray(grad, np.float64))
    return product / product.sum(axis=-1, keepdims=True)


def descended(weights, grads, rate=0.5):
    return jax.tree.map(lambda w, g: w - rate * g, weights, grads)


def test_joint_takes_both_gradients_at_one_point_and_batch(tiny, batch):
    state = tiny.state()
    grads, collections = gradient(tiny, state, batch["weights"])
    moved, metrics = jax.jit(tiny.step(order="joint"))(state, {"weights": batch["weights"]})
    np.testing.assert_allclose(
        moved.params["arch"]["cell"], exponentiated(state.params["arch"]["cell"], grads["arch"]["cell"]), rtol=1e-5
    )
    chex.assert_trees_all_close(
        moved.params["weights"], descended(state.params["weights"], grads["weights"]), rtol=1e-5
    )
    assert_close(moved.collections, collections)
    assert int(moved.step) == 1
    assert jnp.array_equal(moved.key, state.key)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(grads["weights"]), rtol=1e-5)


def test_alternating_moves_the_architecture_first_and_the_weights_see_it(tiny, batch):
    state = tiny.state()
    grads, collections = gradient(tiny, state, batch["arch"])
    arch = {"cell": exponentiated(state.params["arch"]["cell"], grads["arch"]["cell"]).astype(np.float32)}
    halfway = state.replace(params={**state.params, "arch": arch}, collections=collections)
    grads, collections = gradient(tiny, halfway, batch["weights"])
    moved, metrics = jax.jit(tiny.step(order="alternating"))(state, batch)
    assert_close(moved.params["arch"], arch)
    chex.assert_trees_all_close(
        moved.params["weights"], descended(state.params["weights"], grads["weights"]), rtol=1e-5
    )
    assert_close(moved.collections, collections)
    expected, _ = loss(tiny.net, halfway.params, halfway.collections, batch["weights"])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_on_one_batch_the_two_orders_move_the_architecture_alike(tiny, batch):
    state, one = tiny.state(), {"weights": batch["weights"], "arch": batch["weights"]}
    joint, _ = jax.jit(tiny.step(order="joint"))(state, one)
    alternating, _ = jax.jit(tiny.step(order="alternating"))(state, one)
    assert_close(joint.params["arch"], alternating.params["arch"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("still", ["weights", "arch"])
def test_a_block_whose_optimiser_stands_still_is_not_moved_by_the_other(tiny, batch, order, still):
    inner = {"weights": tiny.weights, "arch": tiny.method.optimizer(SPACE)} | {still: optax.set_to_zero()}
    tx = search_optimizer(**inner)
    step = jax.jit(make_search_step(tiny.net, get_space("nas_bench_201_nozero"), tiny.method, tx, order=order))
    before = tiny.state()
    before = before.replace(opt_state=tx.init(before.params))
    after, _ = step(before, batch)
    chex.assert_trees_all_equal(after.params[still], before.params[still])
    (other,) = {"weights", "arch"} - {still}
    for new, old in zip(*map(jax.tree.leaves, (after.params[other], before.params[other])), strict=True):
        assert not jnp.array_equal(new, old)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("method", [gaea(0.1), darts(0.1)], ids=["gaea", "darts"])
def test_in_the_warm_up_only_the_weights_move(tiny, batch, order, method):
    tiny = tiny._replace(method=method)
    step = jax.jit(tiny.step(order=order, warmup_steps=2))
    # The weights as usual: one pass a step, over their own batch, under an architecture that stands still.
    frozen = tiny._replace(method=method._replace(optimizer=lambda space: optax.set_to_zero()))
    usual, reference = jax.jit(frozen.step(order="joint")), frozen.state()
    start = state = tiny.state()
    for _ in range(2):
        state, _ = step(state, batch)
        reference, _ = usual(reference, batch)
    chex.assert_trees_all_equal(state.params["arch"], start.params["arch"])
    chex.assert_trees_all_equal(state.opt_state.arch, start.opt_state.arch)
    assert_close(state.params["weights"], reference.params["weights"])
    assert_close(state.collections, reference.collections)
    state, _ = step(state, batch)
    assert not jnp.array_equal(state.params["arch"]["cell"], start.params["arch"]["cell"])
    assert int(optax.tree.get(state.opt_state.arch, "count")) == 1


@pytest.mark.parametrize("order", ORDERS)
def test_the_regulariser_enters_the_gradient_of_the_architecture_only(tiny, batch, order):
    batch = {"weights": batch["weights"], "arch": batch["weights"]}
    state = tiny.state()
    grads, _ = gradient(tiny, state, batch["weights"])
    divergence = 2.0 * (np.log(4 * np.asarray(state.params["arch"]["cell"])) + 1)
    plain, metrics = jax.jit(tiny.step(order="joint"))(state, batch)
    moved, regularised = jax.jit(tiny._replace(method=gaea(0.1, entropy_weight=2.0)).step(order=order))(state, batch)
    expected = exponentiated(state.params["arch"]["cell"], grads["arch"]["cell"] + divergence)
    np.testing.assert_allclose(moved.params["arch"]["cell"], expected, rtol=1e-5)
    if order == "joint":
        assert_close(moved.params["weights"], plain.params["weights"])
        assert_close(regularised, metrics)


def test_the_clip_of_the_weights_does_not_see_the_gradient_of_the_architecture(tiny, batch):
    clipped = sgd(0.5, momentum=0.0, weight_decay=0.0, clip_norm=1e-2)
    tiny = tiny._replace(weights=clipped)
    state = tiny.state()
    grads, _ = gradient(tiny, state, batch["weights"])
    assert optax.tree.norm(grads["weights"]) > 1e-2
    huge = tiny._replace(method=gaea(0.1, entropy_weight=1e6))
    moved, _ = jax.jit(huge.step(order="joint"))(state, batch)
    change = optax.tree.sub(moved.params["weights"], state.params["weights"])
    np.testing.assert_allclose(optax.tree.norm(change), 0.5 * 1e-2, rtol=1e-3)


@pytest.fixture(scope="module")
def lazy(tiny):
    """NASP at weights that select an operation an edge, and its state."""
    method = nasp(0.4, weight_decay=0.1)
    tiny = tiny._replace(method=method)
    start = {"cell": jax.random.uniform(jax.random.key(0), (6, 4))}
    state = SearchState.create(tiny.net, SPACE, method, tiny.tx, IMAGE, jax.random.key(0))
    params = {**state.params, "arch": start}
    return tiny, state.replace(params=params, memory=method.remember(SPACE, start, {}, 0))


def test_a_step_of_nasp_is_lazy_and_its_weights_see_the_new_network(lazy, batch):
    """Architecture at the discrete point of the old weights, box, then the weights at that of the new ones."""
    tiny, state = lazy
    start, weights = state.params["arch"]["cell"], state.params["weights"]
    after, metrics = jax.jit(tiny.step(order="alternating"))(state, batch)

    def value(weights, table, collections, name):
        params = {"weights": weights, "arch": {"cell": table}}
        return loss(tiny.net, params, collections, batch[name])

    def discrete(table):
        return jax.nn.one_hot(table.argmax(axis=1), 4)

    grad, collections = jax.grad(value, argnums=1, has_aux=True)(weights, discrete(start), state.collections, "arch")
    adam = optax.adam(0.4, b1=0.5)
    update, _ = adam.update(grad + 0.1 * start, adam.init(start))
    moved = jnp.clip(start + update, 0, 1)
    chex.assert_trees_all_close(after.params["arch"]["cell"], moved, atol=1e-6)
    grads, _ = jax.grad(value, has_aux=True)(weights, discrete(moved), collections, "weights")
    chex.assert_trees_all_close(after.params["weights"], descended(weights, grads), atol=1e-5)
    changed = np.sum(np.asarray(discrete(moved) != discrete(start)).any(axis=1))
    assert changed > 0 and float(metrics["changed_edges"]) == changed
    chex.assert_trees_all_equal(after.memory["cell"], discrete(moved).astype(bool))


def test_the_optimiser_is_told_which_weights_take_part():
    """Of those that did not neither decay nor momentum moves a weight, or is moved."""
    space = NASBench201("tiny", ("skip_connect", "nor_conv_1x1", "avg_pool_3x3"))
    net = supernet(space, channels=4, cells=1, num_classes=3)
    method = nasp(1e-6, init_noise=0.2)
    weights = freeze_inactive(sgd(0.1, momentum=0.9, weight_decay=0.1))
    tx = search_optimizer(weights=weights, arch=method.optimizer(space))
    before = SearchState.create(net, space, method, tx, (8, 8, 3), jax.random.key(1))
    # Momentum from before.
    before = before.replace(opt_state=optax.tree.map_params(tx, lambda leaf: leaf + 1, before.opt_state))
    step = make_search_step(net, space, method, tx, order="alternating", masks=True)
    batch = (jax.random.normal(jax.random.key(1), (4, 8, 8, 3)), jnp.arange(4) % 3)
    after, _ = jax.jit(step)(before, {"weights": batch, "arch": batch})
    active = active_parameters(net, before.params["weights"], Mixture({}, before.memory))
    idle = jax.tree.map(lambda mask: not np.all(mask), active)
    # Of the 1x1 convolutions, one an edge and cell.
    assert 0 < sum(jax.tree.leaves(idle)) < 18

    def parts(state):
        return state.params["weights"], optax.tree.get(state.opt_state.weights, "trace")

    for old, new in zip(parts(before), parts(after), strict=True):
        assert jax.tree.map(np.array_equal, old, new) == idle


@pytest.mark.parametrize(
    ("space", "cells", "method"),
    [
        (NASBench201("tiny", ("skip_connect", "nor_conv_1x1", "avg_pool_3x3")), 1, nasp(0.03, init_noise=0.01)),
        (FEW, 3, nasp(0.03, init_noise=0.01)),
        (FEW, 3, entrannas(0.03)),
        (FEW, 3, entrannas_dst(0.1, threshold=0.7)),
    ],
    ids=["nas_bench_201", "darts", "engine and transit cells", "thresholds"],
)
def test_the_network_changes_and_is_traced_once(space, cells, method):
    calls = []

    def mixture(*arguments):
        calls.append(arguments[-1])
        return method.mixture(*arguments)

    net = supernet(space, channels=4, cells=cells, num_classes=3, **method.net)
    tx = search_optimizer(weights=sgd(0.1, momentum=0.9, weight_decay=3e-4), arch=method.optimizer(space))
    counting = method._replace(mixture=mixture)
    state = SearchState.create(net, space, counting, tx, (8, 8, 3), jax.random.key(0))
    step = jax.jit(make_search_step(net, space, counting, tx, objective="bilevel", order="alternating"))
    calls.clear()
    rng, labels = np.random.default_rng(0), jnp.arange(4) % 3
    networks = set()
    for _ in range(50):
        x, y = jnp.asarray(rng.normal(size=(2, 4, 8, 8, 3)), jnp.float32)
        state, metrics = step(state, {"weights": (x, labels), "arch": (y, labels)})
        assert np.isfinite(metrics["loss"])
        networks.add(space.decode(state.memory))
    assert calls == ["arch", "weights"]
    assert len(networks) > 3


def test_the_weights_move_with_what_the_moved_architecture_derives():
    """The order of EnTranNAS: the architecture with what was derived, then what it derives now, then the weights."""

    class Reads(nn.Module):
        @nn.compact
        def __call__(self, x, mixture, train):
            engine, transit = (mixture.at(engine).weights["normal"] for engine in (True, False))
            # Each weight counts otherwise, so that the architecture has a gradient.
            scale = jnp.sum(engine * jnp.arange(engine.size).reshape(engine.shape)) + transit.sum()
            return nn.Dense(3)(x.reshape(len(x), -1)) * scale

    seen = []
    method = entrannas(0.5)

    def mixture(space, arch, memory, key, step, phase):
        seen.append((phase, memory))
        return method.mixture(space, arch, memory, key, step, phase)

    watched = method._replace(mixture=mixture)
    tx = search_optimizer(weights=optax.sgd(0.1), arch=method.optimizer(FEW))
    before = SearchState.create(Reads(), FEW, watched, tx, (2, 2, 1), jax.random.key(0))
    step = make_search_step(Reads(), FEW, watched, tx, objective="bilevel", order="alternating")
    seen.clear()
    images, labels = jax.random.normal(jax.random.key(1), (4, 2, 2, 1)), jnp.arange(4) % 3
    after, metrics = step(before, {"weights": (images, labels), "arch": (-images, labels)})
    derived = method.remember(FEW, after.params["arch"], {}, 0)
    (first, old), (second, new) = seen
    assert (first, second) == ("arch", "weights")
    chex.assert_trees_all_equal(old, before.memory)
    chex.assert_trees_all_equal(new, derived)
    chex.assert_trees_all_equal(after.memory, derived)
    assert metrics["changed_edges"] == sum(np.any(old[cell] != new[cell], axis=1).sum() for cell in old) > 0


def test_a_gradient_that_is_not_used_is_not_computed(tiny, batch):
    def products(order):
        return str(jax.make_jaxpr(tiny.step(order=order))(tiny.state(), batch)).count(" dot_general[")

    # Two layers: two products forward; backward one for each kernel, and one to get past the second layer.
    forward, kernels, through = 2, 2, 1
    assert products("joint") == forward + kernels + through
    assert products("alternating") == (forward + through) + (forward + kernels + through)


def test_a_net_without_other_collections_and_with_another_loss(batch):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, mixture, train):
            return nn.Dense(3)(x.reshape(len(x), -1)) * mixture.weights["cell"].max()

    space, method = get_space("nas_bench_201"), gaea()
    tx = search_optimizer(weights=optax.sgd(0.1), arch=method.optimizer(space))
    state = SearchState.create(Linear(), space, method, tx, (4, 4, 1), jax.random.key(0))
    assert state.collections == {}
    chex.assert_trees_all_equal(state.params["arch"]["cell"], jnp.full((6, 5), jnp.float32(0.2)))
    step = make_search_step(Linear(), space, method, tx, loss=lambda logits, labels: jnp.float32(3.0) + logits.sum())
    moved, metrics = jax.jit(step)(state, batch)
    x, _ = batch["weights"]
    logits = Linear().apply({"params": state.params["weights"]}, x, Mixture(state.params["arch"]), True)
    np.testing.assert_allclose(metrics["loss"], 3 + logits.sum(), rtol=1e-4)
    assert moved.collections == {}


def test_metrics_are_float32_scalars(tiny, batch):
    _, metrics = jax.eval_shape(tiny.step(order="alternating"), tiny.state(), batch)
    assert set(metrics) == {"loss", "accuracy", "gradient_norm"}
    for value in metrics.values():
        chex.assert_shape(value, ())
        assert value.dtype == jnp.float32


def test_loss_in_nats_and_accuracy_in_percent():
    logits, labels = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])), jnp.array([0, 2])
    np.testing.assert_allclose(cross_entropy(logits, labels), -(np.log(0.5) + np.log(0.1)) / 2, rtol=1e-6)
    assert float(accuracy(logits, labels)) == 50.0


@pytest.mark.parametrize(
    ("argument", "value"), [("objective", "trilevel"), ("order", "random"), ("hypergradient", "guessed")]
)
def test_unknown_names_are_refused(tiny, argument, value):
    with pytest.raises(UsageError, match=f"'{value}' is unknown") as caught:
        tiny.step(**{argument: value})
    assert caught.value.argument == argument


@pytest.mark.parametrize("objective", ["bilevel", "bilevel-unrolled"])
def test_joint_is_refused_with_two_batches(tiny, objective):
    with pytest.raises(UsageError, match="order: 'joint' has one batch for both gradients"):
        tiny.step(objective=objective, order="joint")


def test_bilevel_is_single_level_where_the_batches_are_the_same(tiny, batch):
    single, bilevel = (
        jax.jit(tiny.step(objective=objective, order="alternating"))(tiny.state(), batch)
        for objective in ("single-level", "bilevel")
    )
    chex.assert_trees_all_equal(single, bilevel)


def test_a_method_without_an_architecture_makes_no_pass_for_it(tiny, batch):
    tiny = tiny._replace(method=random_search())
    state = SearchState.create(tiny.net, SPACE, tiny.method, tiny.tx, IMAGE, jax.random.key(0))
    moved, _ = jax.jit(tiny.step(objective="bilevel", order="alternating"))(state, batch)
    only_weights = {"weights": batch["weights"], "arch": tuple(jnp.full_like(part, -7) for part in batch["arch"])}
    again, _ = jax.jit(tiny.step(objective="bilevel", order="alternating"))(state, only_weights)
    chex.assert_trees_all_equal(moved, again)
    assert moved.params["arch"] == {}


def test_every_step_and_phase_has_a_sample_of_its_own(tiny, batch):
    seen = []

    def mixture(space, arch, memory, key, step, phase):
        seen.append((phase, jax.random.key_data(key)))
        return Mixture(arch)

    recording = tiny._replace(method=tiny.method._replace(mixture=mixture))
    state = tiny.state()
    for order in ORDERS:
        for at in (0, 1):
            recording.step(order=order)(state.replace(step=jnp.int32(at)), batch)
    assert [phase for phase, _ in seen] == ["joint"] * 2 + ["arch", "weights"] * 2
    assert len({tuple(np.asarray(data).tolist()) for _, data in seen}) == 6
