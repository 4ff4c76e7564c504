from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.methods import Arch, Method, darts, gaea, gaea_pc_darts, pc_darts
from gaea_jax.methods.base import Space
from gaea_jax.spaces.darts import DARTS_SPACE
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_1
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201

FACTORIES = [pc_darts, gaea_pc_darts]
KEY = jax.random.key(0)
SEGMENTS = DARTS_SPACE.choices["normal_edges"].segments
# The gradients of the edges of a cell.
SLOPE = jnp.arange(14) / 10


def after(method: Method, grads: Arch, steps: int = 1, space: Space = DARTS_SPACE) -> Arch:
    """The architecture after steps along the same gradient; a table that is not named has none."""
    arch = method.init(space, KEY)
    grads = {name: grads.get(name, jnp.zeros_like(table)) for name, table in arch.items()}
    optimizer = method.optimizer(space)
    state = optimizer.init(arch)
    for _ in range(steps):
        updates, state = jax.jit(optimizer.update)(grads, state, arch)
        arch = optax.apply_updates(arch, updates)
    return arch


def by_node(edges: jax.Array) -> list[np.ndarray]:
    return np.split(np.asarray(edges), (2, 5, 9))


def test_exponentiated_gradient_of_the_edges() -> None:
    moved = after(gaea_pc_darts(), {"normal_edges": SLOPE})
    expected = (
        *(0.50249998, 0.49750002, 0.33667217, 0.33332222, 0.33000561, 0.25376241, 0.25123743, 0.24873757, 0.24626259),
        *(0.20401987, 0.20198983, 0.19998000, 0.19799017, 0.19602013),
    )
    np.testing.assert_allclose(moved["normal_edges"], expected, atol=2e-7)
    for node in by_node(moved["normal_edges"]):
        np.testing.assert_allclose(node.sum(), 1, atol=2e-7)
    # What has no gradient stays where it starts, all options alike.
    np.testing.assert_allclose(
        np.concatenate(by_node(moved["reduce_edges"])), 1 / np.repeat([2, 3, 4, 5], [2, 3, 4, 5])
    )
    for name in ("normal", "reduce"):
        np.testing.assert_allclose(moved[name], np.full((14, 8), 1 / 8), rtol=1e-6)


def test_operations_and_edges_have_steps_of_their_own() -> None:
    table = jnp.asarray(np.random.default_rng(0).normal(size=(14, 8)), jnp.float32)
    moved = after(gaea_pc_darts(0.2, edge_learning_rate=0.7), {"reduce": table, "reduce_edges": SLOPE}, steps=3)
    np.testing.assert_allclose(moved["reduce"], jax.nn.softmax(-0.6 * table), rtol=1e-5)
    for node, slope in zip(by_node(moved["reduce_edges"]), by_node(SLOPE), strict=True):
        np.testing.assert_allclose(node, jax.nn.softmax(-2.1 * slope), rtol=1e-5)
    scheduled = after(
        gaea_pc_darts(edge_learning_rate=lambda count: jnp.where(count == 0, 0.7, 0.0)), {"reduce_edges": SLOPE}, 3
    )
    np.testing.assert_allclose(by_node(scheduled["reduce_edges"])[0], jax.nn.softmax(-0.7 * SLOPE[:2]), rtol=1e-5)


def test_operations_have_a_floor_and_edges_have_none() -> None:
    table = jnp.zeros((14, 8)).at[:, 0].set(1.0)
    moved = after(gaea_pc_darts(20.0, edge_learning_rate=20.0), {"normal": table, "normal_edges": SLOPE}, steps=3)
    np.testing.assert_allclose(moved["normal"][:, 0], 1e-5, rtol=1e-3)
    # Three steps of 20 along a slope of 0.4 from the first edge of the last node to its last.
    np.testing.assert_allclose(moved["normal_edges"][13] / moved["normal_edges"][9], np.exp(-24), rtol=1e-4)


def test_inputs_that_are_no_option_have_the_step_of_edges_and_a_floor() -> None:
    slopes = {
        "inputs": jnp.arange(7.0),
        "output": jnp.arange(5.0)[None],
        "operations": jnp.ones((4, 3)).at[:, 0].set(0),
    }
    moved = after(gaea_pc_darts(0.2, edge_learning_rate=0.7), slopes, steps=1, space=SPACE_1)
    np.testing.assert_allclose(moved["operations"], jax.nn.softmax(-0.2 * slopes["operations"]), rtol=1e-5)
    np.testing.assert_allclose(moved["inputs"][:3], jax.nn.softmax(-0.7 * jnp.arange(3.0)), rtol=1e-5)
    np.testing.assert_allclose(moved["inputs"][3:], jax.nn.softmax(-0.7 * jnp.arange(4.0)), rtol=1e-5)
    np.testing.assert_allclose(moved["output"], jax.nn.softmax(-0.7 * slopes["output"]), rtol=1e-5)
    alike = after(gaea(0.7), slopes, steps=1, space=SPACE_1)
    np.testing.assert_allclose(alike["inputs"], moved["inputs"], rtol=1e-5)
    np.testing.assert_allclose(alike["operations"], jax.nn.softmax(-0.7 * slopes["operations"]), rtol=1e-5)
    far = after(gaea_pc_darts(20.0, edge_learning_rate=20.0), slopes, steps=3, space=SPACE_1)
    assert min(float(table.min()) for table in far.values()) == pytest.approx(1e-5, rel=1e-3)


def test_gaea_learns_the_edges_where_it_is_given_a_step_for_them() -> None:
    assert list(gaea().init(DARTS_SPACE, KEY)) == ["normal", "reduce"]
    grads = {"normal": jnp.arange(112.0).reshape(14, 8), "normal_edges": SLOPE}
    chex.assert_trees_all_equal(
        after(gaea(edge_learning_rate=0.3), grads, 2), after(gaea_pc_darts(edge_learning_rate=0.3), grads, 2)
    )
    assert gaea(edge_learning_rate=0.3).net == {}


def test_the_edges_of_a_node_are_a_softmax() -> None:
    method = pc_darts()
    logits = jnp.asarray(np.random.default_rng(0).normal(size=14), jnp.float32)
    arch = {**method.init(DARTS_SPACE, KEY), "reduce_edges": logits}
    mixture = method.mixture(DARTS_SPACE, arch, {}, KEY, 0, "joint")
    for node, values in zip(by_node(mixture.weights["reduce_edges"]), by_node(logits), strict=True):
        np.testing.assert_allclose(node, np.exp(values) / np.exp(values).sum(), rtol=1e-6)
    np.testing.assert_allclose(mixture.weights["normal"], jax.nn.softmax(arch["normal"]), rtol=1e-6)


def test_the_softmax_methods_start_near_uniform_and_move_by_one_adam() -> None:
    logits = pc_darts().init(DARTS_SPACE, KEY)
    every = np.concatenate([table.ravel() for table in logits.values()])
    np.testing.assert_allclose(every.std(), 1e-3, rtol=0.2)
    assert len(np.unique(every)) == 252
    # The first step of Adam is its rate, in the direction of the gradient with the decay.
    for method, rate in ((pc_darts(weight_decay=0.0), 6e-4), (darts(0.1, edges=True, weight_decay=0.0), 0.1)):
        moved = after(method, {"normal": jnp.ones((14, 8)), "normal_edges": -jnp.ones(14)})
        start = method.init(DARTS_SPACE, KEY)
        moves = jax.tree.map(lambda a, b: a - b, moved, start)
        np.testing.assert_allclose(moves["normal"], -rate, rtol=1e-3)
        np.testing.assert_allclose(moves["normal_edges"], rate, rtol=1e-3)
        np.testing.assert_array_equal(moves["reduce"], 0)
    decayed = after(pc_darts(), {})
    expected = jax.tree.map(lambda logit: -6e-4 * jnp.sign(logit) / (1 + 1e-8 / jnp.abs(1e-3 * logit)), logits)
    chex.assert_trees_all_close(jax.tree.map(lambda a, b: a - b, decayed, logits), expected, rtol=1e-3)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_net_has_partial_channels(factory: Callable) -> None:
    assert factory().net == {"partial": 4} and factory(partial=1).net == {"partial": 1}
    with pytest.raises(TypeError, match="does not support item assignment"):
        factory().net["partial"] = 2
    with pytest.raises(UsageError, match=r"^partial: must be 1 or more, not 0$"):
        factory(partial=0)


@pytest.mark.parametrize("method", [gaea(edge_learning_rate=0.1), darts(edges=True)])
def test_a_space_without_weights_of_edges_is_refused(method: Method) -> None:
    with pytest.raises(UsageError, match=r"^space: nas_bench_201 has no weights of edges, which the method learns$"):
        method.init(NAS_BENCH_201, KEY)
