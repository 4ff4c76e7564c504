from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture, inherit, network, supernet
from gaea_jax.nets.network import DerivedCell
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO, Genotype, NASBench201

SIZE: dict[str, Any] = {"channels": 4, "cells": 1, "num_classes": 3}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
C1, C3, SKIP, POOL, NONE = "nor_conv_1x1", "nor_conv_3x3", "skip_connect", "avg_pool_3x3", "none"

Supernet = tuple[dict[str, Any], Callable]


def one_hot(space: NASBench201, genotype: Genotype) -> Mixture:
    return Mixture({"cell": space.encode(genotype)["cell"].astype(jnp.float32)})


@pytest.fixture(scope="module")
def supernets(draw: Callable) -> dict[NASBench201, Supernet]:
    """Variables of a supernet of either space, and ``(mixture, train) -> logits, updated collections``."""

    def build(space: NASBench201) -> Supernet:
        net = supernet(space, **SIZE)
        variables = draw(net, IMAGES, one_hot(space, Genotype((SKIP,) * 6)))

        def run(mixture: Mixture, train: bool) -> tuple[jax.Array, dict[str, Any]]:
            return net.apply(variables, IMAGES, mixture, train=train, mutable=["batch_stats"])

        return variables, jax.jit(run, static_argnames="train")

    return {space: build(space) for space in (NAS_BENCH_201, NAS_BENCH_201_NOZERO)}


CELLS = [
    (NAS_BENCH_201, Genotype((C3, NONE, POOL, SKIP, C1, SKIP))),
    (NAS_BENCH_201, Genotype((NONE, C1, C3, NONE, NONE, C3))),
    *((NAS_BENCH_201, NAS_BENCH_201.random(np.random.default_rng(seed))) for seed in range(2)),
    *((NAS_BENCH_201_NOZERO, NAS_BENCH_201_NOZERO.random(np.random.default_rng(seed))) for seed in range(2)),
]


@pytest.mark.parametrize(("space", "genotype"), CELLS, ids=lambda value: str(getattr(value, "name", value)))
def test_a_one_hot_mixture_is_the_network(
    supernets: dict[NASBench201, Supernet], space: NASBench201, genotype: Genotype
) -> None:
    variables, run = supernets[space]
    net = network(space, genotype, **SIZE)
    inherited = inherit(space, variables, genotype)
    fresh = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), IMAGES)
    chex.assert_trees_all_equal_shapes_and_dtypes(inherited, fresh)
    for train in (True, False):
        logits, updated = net.apply(inherited, IMAGES, train=train, mutable=["batch_stats"])
        expected, supernet_updated = run(one_hot(space, genotype), train=train)
        chex.assert_trees_all_close(logits, expected, atol=2e-5)
        kept = inherit(space, {**variables, **supernet_updated}, genotype)["batch_stats"]
        chex.assert_trees_all_close(updated["batch_stats"], kept, atol=2e-5)
        assert np.ptp(logits, axis=0).min() > 1e-3


def test_inherit_copies_the_chosen_weights_only(supernets: dict[NASBench201, Supernet]) -> None:
    variables, _ = supernets[NAS_BENCH_201]
    genotype = Genotype((C3, NONE, POOL, SKIP, C1, SKIP))
    before = jax.tree.map(np.copy, variables)
    inherited = inherit(NAS_BENCH_201, variables, genotype)
    chex.assert_trees_all_equal(variables, before)
    params, source = flatten_dict(inherited["params"], sep="/"), flatten_dict(variables["params"], sep="/")
    edges = {f"cell_{stage}_0/{edge}" for stage in range(3) for edge in (f"edge_1_0_{C3}", f"edge_3_1_{C1}")}
    affine = {f"{edge}/norm/{leaf}" for edge in edges for leaf in ("scale", "bias")}
    outside = {path for path in source if not path.startswith("cell_")}
    assert set(params) == outside | affine | {f"{edge}/conv/kernel" for edge in edges}
    for path, leaf in params.items():
        expected = np.full_like(leaf, path.endswith("scale")) if path in affine else source[path]
        chex.assert_trees_all_equal(np.asarray(leaf), expected)


def test_batch_norm_is_affine_everywhere() -> None:
    net = network(NAS_BENCH_201, Genotype((C3, C1) * 3), **SIZE)
    shapes = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), IMAGES)
    norms = {path[:-1] for path in flatten_dict(shapes["batch_stats"])}
    params = flatten_dict(shapes["params"])
    assert len(norms) == 1 + 3 * 6 + 2 * 2 + 1
    assert norms == {path[:-1] for path in params if path[-1] == "scale"}
    assert all((*norm, "bias") in params for norm in norms)


def test_an_edge_whose_scale_is_zero_is_none(supernets: dict[NASBench201, Supernet]) -> None:
    variables, _ = supernets[NAS_BENCH_201]
    whole, cut = (Genotype((SKIP,) * 5 + (last,)) for last in (C1, NONE))

    def logits(genotype: Genotype, variables: dict[str, Any]) -> jax.Array:
        return network(NAS_BENCH_201, genotype, **SIZE).apply(variables, IMAGES, train=False)

    def silence(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [key.key for key in path]
        return jnp.zeros_like(leaf) if f"edge_3_2_{C1}" in names and names[-1] == "scale" else leaf

    inherited = inherit(NAS_BENCH_201, variables, whole)
    expected = logits(cut, inherit(NAS_BENCH_201, variables, cut))
    silenced = jax.tree_util.tree_map_with_path(silence, inherited)
    chex.assert_trees_all_close(logits(whole, silenced), expected, atol=1e-5)
    assert not np.allclose(logits(whole, inherited), expected, atol=1e-3)


@pytest.mark.parametrize("train", [True, False])
def test_a_cell_of_none_does_not_see_its_input(draw: Callable, train: bool) -> None:
    net = network(NAS_BENCH_201, Genotype((NONE,) * 6), **SIZE)
    variables = draw(net, IMAGES)
    first, second = (net.apply(variables, x, train=train, mutable=["batch_stats"])[0] for x in (IMAGES, 3 - 2 * IMAGES))
    chex.assert_trees_all_equal(first, second, jnp.broadcast_to(first[:1], first.shape))
    assert np.ptp(first[0]) > 0


def test_images_of_one_channel(draw: Callable) -> None:
    net = network(NAS_BENCH_201, Genotype((SKIP,) * 6), **SIZE)
    grey = IMAGES[..., :1]
    variables = draw(net, grey)
    chex.assert_shape(variables["params"]["classifier"]["linear"]["kernel"], (16, 3))
    logits = net.apply(variables, grey, train=False)
    chex.assert_shape(logits, (4, 3))
    colour = {**variables, "params": {**variables["params"], "stem": dict(variables["params"]["stem"])}}
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    colour["params"]["stem"]["conv"] = {"kernel": jnp.repeat(kernel / 3, 3, axis=2)}
    chex.assert_trees_all_close(net.apply(colour, jnp.repeat(grey, 3, axis=3), train=False), logits, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(draw: Callable) -> None:
    genotype = Genotype((C3, SKIP, C1, POOL, SKIP, SKIP))
    half, full = (network(NAS_BENCH_201, genotype, **SIZE, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    variables = draw(half, IMAGES)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, draw(full, IMAGES))
    seen = []

    def record(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv | nn.BatchNorm | DerivedCell):
            seen.append(out.dtype)
        return out

    with nn.intercept_methods(record):
        logits, updated = jax.eval_shape(
            lambda variables: half.apply(variables, IMAGES, train=True, mutable=["batch_stats"]), variables
        )
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in (logits, *jax.tree.leaves(updated))} == {jnp.dtype(jnp.float32)}


def test_a_genotype_of_another_space_is_refused(supernets: dict[NASBench201, Supernet]) -> None:
    genotype = Genotype((SKIP,) * 5 + (NONE,))
    message = r"^genotype: node 3, input 2: operation 'none' is not in nas_bench_201_nozero"
    with pytest.raises(UsageError, match=message):
        network(NAS_BENCH_201_NOZERO, genotype, **SIZE)
    with pytest.raises(UsageError, match=message):
        inherit(NAS_BENCH_201_NOZERO, supernets[NAS_BENCH_201_NOZERO][0], genotype)
