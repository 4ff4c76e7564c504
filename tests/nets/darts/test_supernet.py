import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture, count, supernet
from gaea_jax.nets.darts.edges import find_edge
from gaea_jax.nets.darts.skeleton import Place
from gaea_jax.nets.darts.supernet import MixedCell
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import EDGES, NODES

RNG = np.random.default_rng(0)
OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
BEFORE, LAST = RNG.normal(size=(2, 3, 8, 8, 4)).astype(np.float32)
WEIGHTS = RNG.dirichlet(np.ones(len(OPERATIONS)), len(EDGES)).astype(np.float32)
EDGE_WEIGHTS = RNG.uniform(0.2, 1, len(EDGES)).astype(np.float32)


def cell(reduction: bool, partial: int = 1) -> MixedCell:
    return MixedCell(OPERATIONS, Place(0, 8, reduction, False), partial, jnp.float32)


def mixture(weights: Any, edges: Any = None, active: Any = None, inactive: str = "skip") -> Mixture:
    tables = {name: jnp.asarray(weights) for name in ("normal", "reduce")}
    if edges is not None:
        tables |= {f"{name}_edges": jnp.asarray(edges) for name in ("normal", "reduce")}
    chosen = None if active is None else {name: jnp.asarray(active) for name in ("normal", "reduce")}
    return Mixture(tables, chosen, inactive)


def run(module: MixedCell, variables: Any, mixed: Mixture) -> jax.Array:
    return jax.jit(lambda v, m: module.apply(v, BEFORE, LAST, m, train=True, mutable=["batch_stats"])[0])(
        variables, mixed
    )


@pytest.mark.parametrize(
    ("name", "partial", "stem", "classes", "side", "parameters", "multiply_adds"),
    [
        ("darts", 1, "cifar", 10, 32, 1_930_618, 300_255_744),
        ("darts", 4, "cifar", 10, 32, 299_578, 56_596_992),
        ("darts_nozero", 4, "cifar", 10, 32, 299_578, 56_596_992),
        ("darts", 2, "imagenet", 1000, 224, 956_512, None),
        ("nasp", 1, "cifar", 10, 32, 4_151_354, None),
    ],
)
def test_sizes_of_the_published_supernets(
    name: str, partial: int, stem: str, classes: int, side: int, parameters: int, multiply_adds: int | None
) -> None:
    space = get_space(name)
    uniform = Mixture({table: choice.uniform() for table, choice in space.choices.items()})
    net = supernet(space, channels=16, cells=8, num_classes=classes, partial=partial, stem=stem)
    size = count(net, (side, side, 3), uniform)
    assert size.parameters == parameters
    assert multiply_adds in (None, size.multiply_adds)


@pytest.mark.parametrize(("reduction", "partial"), [(False, 1), (True, 1), (False, 4), (True, 4)])
def test_a_cell_is_the_sum_of_its_edges(draw: Any, reduction: bool, partial: int) -> None:
    """Each edge by itself, all others without weight, against all of them: a node is linear in its incoming edges."""
    module = cell(reduction, partial)
    variables = draw(module, BEFORE, LAST, mixture(WEIGHTS))
    evaluate = jax.jit(lambda m: module.apply(variables, BEFORE, LAST, m, train=False))
    for number, node in enumerate(NODES):
        parts = []
        into = [edge for edge, (target, _) in enumerate(EDGES) if target == node]
        for edge in into:
            # The nodes before stay as they are.
            others = [other for other in into if other != edge]
            alone = np.where(np.isin(np.arange(len(EDGES)), others), 0, EDGE_WEIGHTS)
            parts.append(evaluate(mixture(WEIGHTS, alone))[..., 8 * number : 8 * number + 8])
        together = evaluate(mixture(WEIGHTS, EDGE_WEIGHTS))[..., 8 * number : 8 * number + 8]
        chex.assert_trees_all_close(together, sum(parts), atol=1e-5)
    # Weights of edges multiply those of their operations, where nothing passes by.
    if partial == 1:
        product = evaluate(mixture(WEIGHTS * EDGE_WEIGHTS[:, None]))
        chex.assert_trees_all_close(evaluate(mixture(WEIGHTS, EDGE_WEIGHTS)), product, atol=1e-5)
    side = 4 if reduction else 8
    chex.assert_shape(evaluate(mixture(WEIGHTS)), (3, side, side, 32))


@pytest.mark.parametrize("reduction", [False, True])
def test_other_channels_pass_by_unchanged_or_as_the_largest_of_four_pixels(draw: Any, reduction: bool) -> None:
    module = cell(reduction, 4)
    nothing = np.zeros_like(WEIGHTS)
    variables = draw(module, BEFORE, LAST, mixture(WEIGHTS))
    edges = np.zeros(len(EDGES), np.float32)
    edges[0] = 1
    node = run(module, variables, mixture(nothing, edges))[..., :8]
    side = 4 if reduction else 8
    groups = np.asarray(node).reshape(3, side, side, 2, 4)  # channel c of group k is at 4 c + k
    assert np.all(groups[..., 0] == 0)
    inputs = module.apply(
        variables, BEFORE, LAST, mixture(nothing), train=True, mutable=True, capture_intermediates=True
    )
    (first, _), *_ = inputs[1]["intermediates"]["inputs"]["__call__"]
    expected = np.asarray(first)[..., 2:]
    if reduction:
        expected = expected.reshape(3, 4, 2, 4, 2, 6).max((2, 4))
    chex.assert_trees_all_close(np.moveaxis(groups[..., 1:], -1, -2).reshape(3, side, side, 6), expected, atol=1e-6)


@pytest.mark.parametrize(("reduction", "partial"), [(False, 1), (True, 1), (False, 4), (True, 4)])
def test_what_is_active_is_computed_alone_and_alike(draw: Any, reduction: bool, partial: int) -> None:
    module = cell(reduction, partial)
    variables = draw(module, BEFORE, LAST, mixture(WEIGHTS))
    chosen = RNG.integers(0, len(OPERATIONS), len(EDGES))
    active = np.eye(len(OPERATIONS), dtype=bool)[chosen]
    active[[0, 5]] = False
    one_hot = np.where(active, WEIGHTS, 0)
    # On an edge without an active operation nothing passes by either.
    expected = run(module, variables, mixture(one_hot, active.any(axis=1).astype(np.float32)))
    chex.assert_trees_all_close(run(module, variables, mixture(WEIGHTS, active=active)), expected, atol=1e-5)

    def broken(path: Any, leaf: jax.Array) -> jax.Array:
        """NaN in every row of an edge that does not use the operation."""
        module = path[1].key
        if module == "inputs":
            return leaf
        used = np.zeros(len(leaf), bool)
        for edge, (node, source) in enumerate(EDGES):
            name, row = find_edge(OPERATIONS[chosen[edge]], node, source, reduction)
            if active[edge].any() and module == name:
                used[row] = True
        return np.where(used.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, np.nan)

    damaged = jax.tree_util.tree_map_with_path(broken, variables)
    chex.assert_trees_all_close(run(module, damaged, mixture(WEIGHTS, active=active)), expected, atol=1e-5)


@pytest.mark.parametrize("reduction", [False, True])
def test_running_statistics_keep_nine_tenths_of_each_edge_that_was_computed(draw: Any, reduction: bool) -> None:
    module = cell(reduction)
    variables = draw(module, BEFORE, LAST, mixture(WEIGHTS))

    def update(variables: Any, mixed: Mixture) -> Any:
        return jax.jit(lambda m: module.apply(variables, BEFORE, LAST, m, train=True, mutable=["batch_stats"])[1])(
            mixed
        )

    fresh = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    batch = jax.tree.map(lambda tenth: 10 * tenth, update(fresh, mixture(WEIGHTS))["batch_stats"])
    dense = update(variables, mixture(WEIGHTS))["batch_stats"]
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables["batch_stats"], batch)
    chex.assert_trees_all_close(dense, expected, atol=1e-5)
    # Only dil_conv_3x3, on the edges into the first node, whose inputs do not depend on what other edges do.
    active = np.zeros(WEIGHTS.shape, bool)
    active[:2, OPERATIONS.index("dil_conv_3x3")] = True
    sampled = update(variables, mixture(WEIGHTS, active=active))["batch_stats"]
    for name, statistics in variables["batch_stats"].items():
        if name == "inputs":
            continue
        rows = [find_edge("dil_conv_3x3", *EDGES[edge], reduction) for edge in (0, 1)]
        computed = [row for module, row in rows if name == module]
        for key, old in statistics.items():
            kept = np.isin(np.arange(len(old)), computed)[:, None]
            chex.assert_trees_all_close(sampled[name][key], np.where(kept, expected[name][key], old), atol=1e-5)


def test_gradients_of_a_cell_against_float64_differences(draw: Any) -> None:
    narrow = draw(cell(True, 4), BEFORE, LAST, mixture(WEIGHTS))
    with jax.enable_x64(True):
        module = cell(True, 4).clone(dtype=jnp.float64)
        variables, before, last = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (narrow, BEFORE, LAST))
        rng = np.random.default_rng(2)
        target = rng.normal(size=(3, 4, 4, 32))

        @jax.jit
        def loss(point: Any) -> jax.Array:
            params, weights, edges = point
            options = {"train": True, "mutable": ["batch_stats"]}
            out, _ = module.apply({**variables, "params": params}, before, last, mixture(weights, edges), **options)
            return jnp.sum(out * target)

        point = variables["params"], WEIGHTS.astype(np.float64), EDGE_WEIGHTS.astype(np.float64)
        gradient = jax.jit(jax.grad(loss))(point)
        way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), point)
        along = sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
        # So short that hardly a rectifier or a maximum changes sides.
        step = 1e-7
        ahead, behind = (jax.tree.map(lambda p, w, s=s: p + s * step * w, point, way) for s in (1, -1))
        difference = (loss(ahead) - loss(behind)) / (2 * step)
        np.testing.assert_allclose(along, difference, rtol=1e-5)


def test_the_weight_of_an_idle_operation_is_a_number_that_is_added(draw: Any) -> None:
    module = cell(False)
    variables = draw(module, BEFORE, LAST, mixture(WEIGHTS))
    active = np.eye(len(OPERATIONS), dtype=bool)[np.full(len(EDGES), 2)]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(weights: jax.Array) -> Any:
        out = module.apply(
            variables,
            BEFORE,
            LAST,
            mixture(weights, active=active, inactive="scalar"),
            train=True,
            mutable=["batch_stats"],
        )[0]
        return jnp.sum(jnp.sin(out)), out

    hard = active.astype(np.float32)
    (_, out), gradient = total(hard)
    chex.assert_trees_all_close(out, run(module, variables, mixture(hard, active=active)), atol=1e-5)
    assert np.all(np.asarray(gradient) != 0)


@pytest.mark.parametrize(
    ("size", "image", "argument", "sentence"),
    [
        ({"channels": 5}, 8, "channels", "must be even"),
        ({"cells": 0}, 8, "cells", "1 or more"),
        ({"partial": 3}, 8, "partial", "must leave an even part of the 4 channels"),
        ({"partial": 4}, 8, "partial", "must leave an even part"),
        ({"stem": "vit"}, 8, "stem", "known are cifar, imagenet"),
        ({}, 6, "dataset", "divisible by 4"),
        ({"stem": "imagenet"}, 48, "dataset", "divisible by 32"),
    ],
)
def test_what_does_not_fit_is_refused(size: dict[str, Any], image: int, argument: str, sentence: str) -> None:
    space = get_space("darts")
    uniform = Mixture({name: choice.uniform() for name, choice in space.choices.items()})
    with pytest.raises(UsageError, match=sentence) as caught:
        net = supernet(space, **{"channels": 4, "cells": 1, "num_classes": 2, **size})
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, image, image, 3)), uniform, train=False))
    assert caught.value.argument == argument


def test_tables_of_another_space_are_refused() -> None:
    net = supernet(get_space("darts"), channels=4, cells=1, num_classes=2)
    wrong = Mixture({"normal": jnp.ones((14, 7)), "reduce": jnp.ones((14, 7))})
    with pytest.raises(UsageError, match="wants tables of shapes"):
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), wrong, train=False))
