import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture, inherit, network, supernet
from gaea_jax.nets.supernet import MixedCell
from gaea_jax.spaces.nas_bench_201 import EDGES, NAS_BENCH_201, NAS_BENCH_201_NOZERO, OPERATIONS, Genotype, NASBench201

SIZE: dict[str, Any] = {"channels": 4, "cells": 1, "num_classes": 3}
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(4, 8, 8, 3)), jnp.float32)
LABELS = jnp.asarray([0, 1, 2, 0])
MIXTURE = Mixture({"cell": jnp.asarray(RNG.dirichlet(np.ones(5), size=6), jnp.float32)})

# Two convolutions an edge take most of a compilation, and a space of fewer operations has the same networks.
TINY = NASBench201("tiny", ("none", "nor_conv_1x1", "avg_pool_3x3"))


class Net(NamedTuple):
    module: nn.Module
    variables: dict[str, Any]
    train: Callable
    test: Callable


@pytest.fixture(scope="module")
def net(draw: Callable) -> Net:
    module = supernet(NAS_BENCH_201, **SIZE)

    def train(variables: dict[str, Any], x: jax.Array, mixture: Mixture) -> tuple[jax.Array, dict[str, Any]]:
        return module.apply(variables, x, mixture, train=True, mutable=["batch_stats"])

    def test(variables: dict[str, Any], x: jax.Array, mixture: Mixture) -> jax.Array:
        return module.apply(variables, x, mixture, train=False)

    return Net(module, draw(module, IMAGES, MIXTURE), jax.jit(train), jax.jit(test))


def test_nodes_sum_their_edges_in_the_order_of_the_table(draw: Callable) -> None:
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
    w = RNG.normal(size=6).astype(np.float32)
    table = np.zeros((6, 5), np.float32)
    table[:, OPERATIONS.index("skip_connect")] = w
    table[:, OPERATIONS.index("none")] = 7.0
    cell = MixedCell(NAS_BENCH_201, jnp.float32)
    mixture = Mixture({"cell": jnp.asarray(table)})
    variables = draw(cell, x, mixture)
    node_1 = w[0]
    node_2 = w[1] + w[2] * node_1
    node_3 = w[3] + w[4] * node_1 + w[5] * node_2
    chex.assert_trees_all_close(cell.apply(variables, x, mixture, train=False), node_3 * x, atol=1e-5)


def test_the_weight_of_none_changes_nothing(net: Net) -> None:
    heavier = Mixture({"cell": MIXTURE.weights["cell"].at[:, 0].add(3.0)})
    chex.assert_trees_all_equal(net.test(net.variables, IMAGES, heavier), net.test(net.variables, IMAGES, MIXTURE))


@pytest.mark.parametrize("space", [NAS_BENCH_201, NAS_BENCH_201_NOZERO])
def test_batch_norm_is_affine_outside_the_cells_only(space: Any) -> None:
    module = supernet(space, **SIZE)
    mixture = Mixture({"cell": jnp.zeros(space.choices["cell"].shape)})
    shapes = jax.eval_shape(lambda key: module.init(key, IMAGES, mixture, train=False), jax.random.key(0))
    params, statistics = (flatten_dict(shapes[name], sep="/") for name in ("params", "batch_stats"))
    convolutions = {
        f"cell_{stage}_0/edge_{target}_{source}_{operation}"
        for stage in range(3)
        for target, source in EDGES
        for operation in ("nor_conv_1x1", "nor_conv_3x3")
    }
    blocks = {"stem"} | {f"reduce_{i}/conv_{part}" for i in (1, 2) for part in "ab"}
    norms = {f"{block}/norm" for block in blocks} | {"last_norm"}
    assert set(params) == (
        {f"{name}/conv/kernel" for name in convolutions | blocks}
        | {f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")}
        | {"reduce_1/shortcut/kernel", "reduce_2/shortcut/kernel"}
        | {"classifier/linear/kernel", "classifier/linear/bias"}
    )
    tracked = norms | {f"{name}/norm" for name in convolutions}
    assert set(statistics) == {f"{norm}/{leaf}" for norm in tracked for leaf in ("mean", "var")}


def test_running_statistics_keep_nine_tenths(net: Net) -> None:
    _, updated = net.train(net.variables, IMAGES, MIXTURE)
    kernel = net.variables["params"]["stem"]["conv"]["kernel"]
    y = jax.lax.conv_general_dilated(IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    old = net.variables["batch_stats"]["stem"]["norm"]
    expected = {
        "mean": 0.9 * old["mean"] + 0.1 * y.mean(axis=(0, 1, 2)),
        "var": 0.9 * old["var"] + 0.1 * y.var(axis=(0, 1, 2)),
    }
    chex.assert_trees_all_close(updated["batch_stats"]["stem"]["norm"], expected, atol=1e-5)
    for path, leaf in flatten_dict(net.variables["batch_stats"]).items():
        assert not np.allclose(flatten_dict(updated["batch_stats"])[path], leaf, atol=1e-4), path


def test_evaluation_uses_the_running_statistics(net: Net) -> None:
    logits = net.test(net.variables, IMAGES, MIXTURE)
    chex.assert_trees_all_close(net.test(net.variables, IMAGES[:1], MIXTURE), logits[:1], atol=1e-5)
    assert not np.allclose(net.train(net.variables, IMAGES, MIXTURE)[0], logits, atol=1e-2)


def test_gradients_against_float64_differences(draw: Callable) -> None:
    shape = (6, len(TINY.operations))
    narrow = draw(supernet(TINY, **SIZE), IMAGES, Mixture({"cell": jnp.zeros(shape)}))
    params, statistics, images = jax.tree.map(np.float64, (narrow["params"], narrow["batch_stats"], IMAGES))
    table = np.random.default_rng(1).dirichlet(np.ones(shape[1]), 6)
    with jax.enable_x64(True):
        module = supernet(TINY, **SIZE, dtype=jnp.float64)

        @jax.jit
        @jax.value_and_grad
        def loss(point: tuple[Any, jax.Array]) -> jax.Array:
            variables = {"params": point[0], "batch_stats": statistics}
            mixture = Mixture({"cell": point[1]})
            logits, _ = module.apply(variables, images, mixture, train=True, mutable=["batch_stats"])
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(images)), LABELS])

        value, gradient = loss((params, table))
        chex.assert_type(value, jnp.float64)
        weights, arch = jax.tree.map(np.asarray, gradient)

        def slope(weights_move: Any, arch_move: np.ndarray) -> float:
            up, down = (
                loss(
                    jax.tree.map(
                        lambda at, move, step=step: at + step * move, (params, table), (weights_move, arch_move)
                    )
                )[0]
                for step in (1e-6, -1e-6)
            )
            return float(up - down) / 2e-6

        still = jax.tree.map(np.zeros_like, params)
        axes = np.eye(table.size).reshape(-1, *shape)
        slopes = np.array([slope(still, axis) for axis in axes]).reshape(shape)
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(weights)))
        steepest = slope(jax.tree.map(lambda leaf: leaf / norm, weights), np.zeros(shape))
    chex.assert_trees_all_close(arch, slopes, rtol=1e-5, atol=1e-8)
    chex.assert_trees_all_close(steepest, norm, rtol=1e-5)
    assert np.all(arch[:, 0] == 0) and np.all(arch[:, 1:] != 0)
    for path, leaf in flatten_dict(weights).items():
        assert np.abs(leaf).max() > 1e-6, path
    assert not jax.config.jax_enable_x64


SAMPLE = Genotype(("nor_conv_3x3", "avg_pool_3x3", "nor_conv_1x1", "skip_connect", "none", "nor_conv_3x3"))


def idle(path: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to a candidate operation that `SAMPLE` has not."""
    chosen = {
        f"edge_{target}_{source}_{operation}" for (target, source), operation in zip(EDGES, SAMPLE.cell, strict=True)
    }
    return path[0].startswith("cell_") and path[1] not in chosen


def test_what_is_active_computes_what_the_dense_supernet_and_the_derived_network_compute(net: Net) -> None:
    sampled = Mixture.derived(NAS_BENCH_201.encode(SAMPLE))
    dense = Mixture(sampled.weights)
    derived = network(NAS_BENCH_201, SAMPLE, **SIZE)
    inherited = inherit(NAS_BENCH_201, net.variables, SAMPLE)
    logits, updated = net.train(net.variables, IMAGES, sampled)
    chex.assert_trees_all_close(logits, net.train(net.variables, IMAGES, dense)[0], atol=1e-4)
    expected = jax.jit(lambda v: derived.apply(v, IMAGES, train=True, mutable=["batch_stats"])[0])(inherited)
    chex.assert_trees_all_close(logits, expected, atol=1e-4)
    expected = jax.jit(lambda v: derived.apply(v, IMAGES, train=False))(inherited)
    chex.assert_trees_all_close(net.test(net.variables, IMAGES, sampled), expected, atol=1e-4)
    before, after = flatten_dict(net.variables["batch_stats"]), flatten_dict(updated["batch_stats"])
    for path, leaf in after.items():
        assert np.array_equal(leaf, before[path]) == idle(path), path


def test_what_is_not_active_is_not_computed(net: Net) -> None:
    sampled = Mixture.derived(NAS_BENCH_201.encode(SAMPLE))
    params = flatten_dict(net.variables["params"])
    broken = unflatten_dict({path: np.full_like(p, np.nan) if idle(path) else p for path, p in params.items()})

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        variables = {**net.variables, "params": params}
        logits, _ = net.module.apply(variables, IMAGES, sampled, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2), logits

    (_, logits), gradient = total(broken)
    chex.assert_trees_all_equal(logits, total(net.variables["params"])[0][1])
    for path, leaf in flatten_dict(gradient).items():
        assert np.array_equal(leaf, np.zeros_like(leaf)) if idle(path) else np.isfinite(leaf).all(), path


def test_an_idle_scalar_is_added_as_a_number(draw: Callable) -> None:
    shape, chosen = (6, len(TINY.operations)), np.array([0, 1, 2, 1, 2, 1])
    active = {"cell": jnp.asarray(np.eye(shape[1], dtype=bool)[chosen])}
    narrow = draw(supernet(TINY, **SIZE), IMAGES, Mixture({"cell": jnp.zeros(shape)}))
    table = np.random.default_rng(1).normal(size=shape)
    variables, images = jax.tree.map(np.float64, (narrow, IMAGES))
    with jax.enable_x64(True):
        module = supernet(TINY, **SIZE, dtype=jnp.float64)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(table: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixture = Mixture({"cell": table}, active, "scalar")
            logits, _ = module.apply(variables, images, mixture, train=True, mutable=["batch_stats"])
            return jnp.sum(logits**2), logits

        @jax.jit
        def skipping(table: jax.Array) -> jax.Array:
            mixture = Mixture({"cell": table}, active)
            return module.apply(variables, images, mixture, train=True, mutable=["batch_stats"])[0]

        (_, logits), gradient = total(table)
        moves = 1e-6 * np.eye(table.size).reshape(-1, *shape)
        slopes = np.array([total(table + move)[0][0] - total(table - move)[0][0] for move in moves]) / 2e-6
        one_hot = np.where(active["cell"], table, 0.0)
        (_, zeroed), _ = total(one_hot)
        skipped = skipping(one_hot)
    chex.assert_trees_all_close(gradient, slopes.reshape(shape), rtol=1e-5, atol=1e-6)
    # All options have a gradient, but the chosen one of the first edge: it is none.
    assert np.all((np.asarray(gradient) != 0) == (np.arange(18).reshape(shape) != 0))
    chex.assert_trees_all_close(zeroed, skipped, rtol=1e-12)
    assert not np.allclose(logits, zeroed)


def test_an_idle_weight_that_is_probed_has_the_gradient_of_the_dense_supernet(draw: Callable) -> None:
    shape = (6, len(TINY.operations))
    module = supernet(TINY, **SIZE)
    variables = draw(module, IMAGES, Mixture({"cell": jnp.zeros(shape)}))

    @functools.partial(jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 0})
    @functools.partial(jax.value_and_grad, argnums=(2, 3))
    def loss(active: jax.Array | None, inactive: str, params: Any, table: jax.Array) -> jax.Array:
        mixture = Mixture({"cell": table}, None if active is None else {"cell": active}, inactive)
        logits, _ = module.apply({**variables, "params": params}, IMAGES, mixture, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits))

    for chosen in ([2, 1, 2, 1, 2, 1], [1, 2, 0, 2, 1, 2]):
        active = np.eye(shape[1], dtype=bool)[chosen]
        probed = loss(active, "probe", variables["params"], active.astype(np.float32))
        dense = loss(None, "skip", variables["params"], active.astype(np.float32))
        chex.assert_trees_all_close(probed, dense, atol=1e-5, rtol=1e-5)
        assert np.all((np.asarray(probed[1][1]) != 0) == (np.array(TINY.operations) != "none"))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(draw: Callable) -> None:
    half, full = (supernet(TINY, **SIZE, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    mixture = Mixture({"cell": MIXTURE.weights["cell"][:, : len(TINY.operations)]})
    seen = []

    def record(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv | nn.BatchNorm | MixedCell):
            seen.append(out.dtype)
        return out

    with nn.intercept_methods(record):
        variables = draw(half, IMAGES, mixture)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, draw(full, IMAGES, mixture))

    @functools.partial(jax.jit, static_argnums=0)
    def run(net: nn.Module) -> tuple[jax.Array, dict[str, Any]]:
        return net.apply(variables, IMAGES, mixture, train=True, mutable=["batch_stats"])

    rounded, exact = run(half), run(full)
    chex.assert_type([rounded[0], *jax.tree.leaves(rounded[1])], jnp.float32)
    assert 0 < np.abs(rounded[0] - exact[0]).max() < 0.05 * np.abs(exact[0]).max()
    chex.assert_trees_all_close(rounded[1], exact[1], rtol=0.05, atol=0.02)


def test_wrong_input_is_refused(net: Net) -> None:
    key = jax.random.key(0)
    with pytest.raises(UsageError, match=r"^mixture: wants tables of shapes \{'cell': \(6, 5\)\}, got .*6, 4"):
        net.module.init(key, IMAGES, Mixture({"cell": jnp.full((6, 4), 0.25)}), train=False)
    with pytest.raises(UsageError, match=r"^mixture: wants tables of shapes .*, got \{'cell': \(6,\)\}"):
        net.module.init(key, IMAGES, Mixture(MIXTURE.weights, {"cell": jnp.zeros(6, bool)}), train=False)
    with pytest.raises(UsageError, match=r"^mixture: wants tables of shapes .*, got \{\}"):
        net.module.init(key, IMAGES, Mixture({}), train=False)
    with pytest.raises(UsageError, match=r"^dataset: .* divisible by 4, got \[4, 6, 6, 3\]"):
        net.module.init(key, IMAGES[:, :6, :6], MIXTURE, train=False)


def test_unknown_kinds_of_space_are_refused(net: Net) -> None:
    genotype = Genotype(("skip_connect",) * 6)
    with pytest.raises(TypeError, match="no supernet for a space of type str"):
        supernet("nas_bench_201", **SIZE)
    with pytest.raises(TypeError, match="no network for a space of type str"):
        network("nas_bench_201", genotype, **SIZE)
    with pytest.raises(TypeError, match="no derived network for a space of type str"):
        inherit("nas_bench_201", net.variables, genotype)
