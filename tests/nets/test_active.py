"""Which parameters take part in a step, against the gradients that they get."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.nets import Mixture, active_parameters, supernet
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import DARTS, EDGES

SMALL = DARTS("small", ("skip_connect", "dil_conv_3x3"), ("none", "conv 1x1", "skip_connect"))
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)


def without_gradient(space: Any, cells: int, variables: Any, mixture: Mixture) -> Any:
    """Of a loss by the parameters."""
    net = supernet(space, channels=4, cells=cells, num_classes=3)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @jax.grad
    def gradient(params: Any) -> jax.Array:
        own = {**variables, "params": params}
        return jnp.sum(jnp.sin(net.apply(own, IMAGES, mixture, train=True, mutable=["batch_stats"])[0]))

    return gradient(variables["params"])


@pytest.mark.parametrize(
    ("space", "cells"),
    [(get_space("nas_bench_201"), 1), (SMALL, 3), (get_space("nas_bench_1shot1_2"), 3)],
    ids=["nas_bench_201", "darts", "nas_bench_1shot1"],
)
def test_what_is_active_has_a_gradient_and_nothing_else_has(draw: Any, space: Any, cells: int) -> None:
    genotype = space.random(np.random.default_rng(4))
    mixture = Mixture.derived(space.encode(genotype))
    net = supernet(space, channels=4, cells=cells, num_classes=3)
    variables = draw(net, IMAGES, Mixture(mixture.weights))
    active = active_parameters(net, variables["params"], mixture)
    chex.assert_trees_all_equal_structs(active, variables["params"])
    gradient = without_gradient(space, cells, variables, mixture)
    seen = set()

    def check(path: Any, mask: Any, leaf: jax.Array) -> None:
        mask = np.broadcast_to(mask, leaf.shape)
        rows = [()] if np.ndim(mask) == 0 or mask.all() or not mask.any() else np.ndindex(leaf.shape[:1])
        for row in rows:
            seen.add(bool(mask[row].all()))
            assert mask[row].all() == np.any(leaf[row] != 0), path

    jax.tree_util.tree_map_with_path(check, active, gradient)
    assert seen == {True, False}
    assert jax.tree.leaves(active["stem"]) == [True] * 3 and all(jax.tree.leaves(active["classifier"]))


def test_what_is_no_supernet_is_refused() -> None:
    with pytest.raises(TypeError, match="wants a supernet, not str"):
        active_parameters("darts", {}, Mixture({}))


def test_the_rows_of_a_reduction_cell_are_edges_of_one_stride() -> None:
    """By the module's layout: 8 rows for the edges from the inputs, 6 for those between nodes."""
    space = get_space("darts")
    net = supernet(space, channels=4, cells=3, num_classes=3)
    tables = {cell: space.choices[cell].uniform() for cell in ("normal", "reduce")}
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGES, Mixture(tables), train=False))["params"]
    active = {cell: np.zeros((len(EDGES), 8), bool) for cell in tables}
    edge = EDGES.index((4, 3))
    active["reduce"][edge, 4] = True
    masks = active_parameters(
        net, params, Mixture(tables, {cell: jnp.asarray(table) for cell, table in active.items()})
    )
    on = {
        (module, name): np.argwhere(np.ravel(mask)).ravel().tolist()
        for module, operations in masks.items()
        if module.startswith("cell_")
        for name, arrays in operations.items()
        if name != "inputs"
        for mask in [arrays[next(iter(arrays))]]
        if np.any(mask)
    }
    # The edges between nodes, by source: 2 to 3, 4 and 5, then 3 to 4 and 5, then 4 to 5.
    assert on == {("cell_1", "sep_conv_3x3"): [3], ("cell_2", "sep_conv_3x3"): [3]}
