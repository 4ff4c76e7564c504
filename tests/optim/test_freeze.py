"""What is not active keeps its value, and what the inner transform remembers of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax import optim

PARAMS = {"table": jnp.arange(6.0).reshape(3, 2), "other": jnp.ones(2)}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
ACTIVE = {"table": jnp.array([[True], [False], [True]]), "other": True}
INNER = {
    "decay": lambda: optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
    "schedule": lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 5), momentum=0.9),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's own Adam mixes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", INNER)
def test_rows_that_rest_keep_value_and_state_and_others_move_as_without(name):
    inner, solver = INNER[name](), optim.freeze_inactive(INNER[name]())
    update = jax.jit(solver.update)
    state, free = solver.init(PARAMS), inner.init(PARAMS)
    chex.assert_trees_all_equal(state, free)
    params, moved = PARAMS, PARAMS
    for _ in range(3):
        updates, state = update(GRADS, state, params, active=ACTIVE)
        params = optax.apply_updates(params, updates)
        updates, free = inner.update(GRADS, free, moved)
        moved = optax.apply_updates(moved, updates)
    chex.assert_trees_all_close(params["other"], moved["other"], rtol=1e-6)
    chex.assert_trees_all_close(params["table"][::2], moved["table"][::2], rtol=1e-6)
    chex.assert_trees_all_equal(params["table"][1], PARAMS["table"][1])
    start = solver.init(PARAMS)

    def row(state, number):
        return [leaf[number] for leaf in jax.tree.leaves(state) if np.shape(leaf) == (3, 2)]

    chex.assert_trees_all_equal(row(state, 1), row(start, 1))
    chex.assert_trees_all_close(row(state, 0), row(free, 0), rtol=1e-6)
    # Counts and rates go on.
    scalars = [[leaf for leaf in jax.tree.leaves(tree) if np.shape(leaf) == ()] for tree in (state, free)]
    chex.assert_trees_all_close(*scalars)


def test_without_a_mask_everything_moves():
    inner, solver = optax.adam(0.1), optim.freeze_inactive(optax.adam(0.1))
    expected = inner.update(GRADS, inner.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(solver.update(GRADS, solver.init(PARAMS), PARAMS), expected)


def test_it_works_within_a_search_optimizer():
    solver = optim.search_optimizer(weights=optim.freeze_inactive(optax.sgd(0.1, 0.9)), arch=optax.sgd(0.1))
    params = {"weights": PARAMS, "arch": jnp.ones(2)}
    grads = {"weights": GRADS, "arch": jnp.ones(2)}
    updates, _ = solver.update(grads, solver.init(params), params, active=ACTIVE)
    assert not updates["weights"]["table"][1].any() and updates["weights"]["table"][0].all() and updates["arch"].all()


def test_a_mask_of_another_tree_is_refused():
    solver = optim.freeze_inactive(optax.sgd(0.1))
    with pytest.raises(ValueError):
        solver.update(GRADS, solver.init(PARAMS), PARAMS, active={"table": True})
