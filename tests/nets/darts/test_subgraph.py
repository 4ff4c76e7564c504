"""What is active, computed alone, against the cell that computes all operations and multiplies the others by 0."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.nets import Mixture
from gaea_jax.nets.darts.skeleton import Place
from gaea_jax.nets.darts.supernet import MixedCell
from gaea_jax.spaces.darts import CELLS, EDGES

RNG = np.random.default_rng(0)
OPERATIONS = ("none", "avg_pool_3x3", "skip_connect", "dil_conv_3x3")
INPUTS = RNG.normal(size=(2, 4, 8, 8, 4)).astype(np.float32)
WEIGHTS = RNG.uniform(0.2, 1, (len(EDGES), len(OPERATIONS))).astype(np.float32)
EDGE_WEIGHTS = RNG.uniform(0.2, 1, len(EDGES)).astype(np.float32)
# An operation an edge, and any number of them; none for two of the edges.
ONE = np.eye(len(OPERATIONS), dtype=bool)[RNG.integers(0, len(OPERATIONS), len(EDGES))]
SEVERAL = ONE | (RNG.random(ONE.shape) < 0.3)
for table in (ONE, SEVERAL):
    table[[0, 5]] = False
    # Each node has something that is not 0, which BatchNorm after it would blow up.
    table[[1, 4, 6, 10], 2] = True


def compiled(module: MixedCell, variables: Any, inputs: Any = INPUTS) -> Callable[..., Any]:
    """``(inactive, active, weights, edge weights)`` to the value of a loss and its gradients.

    These are by parameters, inputs, weights of operations and weights of edges.
    """

    @functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
    @functools.partial(jax.value_and_grad, argnums=2)
    def loss(inactive: str, active: jax.Array | None, point: Any) -> jax.Array:
        params, inputs, weights, edges = point
        tables = {name: weights for name in CELLS} | {f"{name}_edges": edges for name in CELLS}
        chosen = None if active is None else dict.fromkeys(CELLS, active)
        own = {**variables, "params": params}
        out, _ = module.apply(own, *inputs, Mixture(tables, chosen, inactive), train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(3 * out)) / out[..., 0].size

    return lambda inactive, active, *tables: loss(inactive, active, (variables["params"], inputs, *tables))


@pytest.mark.parametrize(
    ("reduction", "partial", "shared"),
    [(False, 1, False), (True, 1, False), (False, 4, False), (True, 4, False), (False, 1, True), (True, 1, True)],
)
def test_gradients_are_those_of_the_masked_cell(draw: Any, reduction: bool, partial: int, shared: bool) -> None:
    module = MixedCell(OPERATIONS, Place(0, 8, reduction, False), partial, jnp.float32, shared)
    run = compiled(module, draw(module, *INPUTS, Mixture({name: jnp.asarray(WEIGHTS) for name in CELLS})))
    for active in (ONE, SEVERAL):
        weights, used = np.where(active, WEIGHTS, 0), active.any(axis=1)
        # On an edge without an active operation nothing passes by either.
        value, masked = run("skip", None, weights, np.where(used, EDGE_WEIGHTS, 0))
        params, inputs, of_weights, of_edges = masked
        expected = value, (params, inputs, np.where(active, of_weights, 0), np.where(used, of_edges, 0))
        found = run("skip", active, weights, EDGE_WEIGHTS)
        chex.assert_trees_all_close(found, expected, atol=1e-5, rtol=1e-5)
        value, found = run("probe", active, weights, EDGE_WEIGHTS)
        if partial == 1:
            expected = run("skip", None, weights, EDGE_WEIGHTS)
            chex.assert_trees_all_close((value, found), expected, atol=1e-5, rtol=1e-5)
        else:
            of_all, expected = (tree[2][used] for tree in (found, masked))
            chex.assert_trees_all_close(of_all, expected, atol=1e-5, rtol=1e-5)
        assert np.all(np.asarray(found[2])[:, 1:] != 0) and not np.any(np.asarray(found[2])[:, 0])


def test_gradients_of_what_is_active_have_gradients(draw: Any) -> None:
    """As the step of DARTS' second order takes them: the change of a gradient along a direction of the parameters."""
    module = MixedCell(OPERATIONS, Place(0, 8, True, False), 1, jnp.float32)
    weights = np.where(ONE, WEIGHTS, 0)
    variables = draw(module, *INPUTS, Mixture({name: jnp.asarray(WEIGHTS) for name in CELLS}))
    way = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), variables["params"])

    def along(active: np.ndarray | None) -> Any:
        def gradient(params: Any) -> Any:
            run = compiled(module, {**variables, "params": params})
            return run("skip", active, weights, np.ones(len(EDGES), np.float32))[1][0]

        return jax.jvp(gradient, (variables["params"],), (way,))[1]

    chex.assert_trees_all_close(along(ONE), along(None), atol=1e-4, rtol=1e-3)


def test_devices_share_a_batch(draw: Any) -> None:
    module = MixedCell(OPERATIONS, Place(0, 8, True, False), 1, jnp.float32)
    variables = draw(module, *INPUTS, Mixture({name: jnp.asarray(WEIGHTS) for name in CELLS}))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.device_put(INPUTS, jax.NamedSharding(mesh, jax.P(None, "data")))
    tables = "probe", ONE, np.where(ONE, WEIGHTS, 0), EDGE_WEIGHTS
    expected = compiled(module, variables)(*tables)
    chex.assert_trees_all_close(compiled(module, variables, split)(*tables), expected, atol=1e-5, rtol=1e-5)
