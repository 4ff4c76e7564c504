"""The optimiser of a search: a step moves one block or both, and touches nothing of the other."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from gaea_jax import optim


@pytest.fixture(autouse=True)
def strict_promotion():
    """Overrides the strict fixture: Optax's own Adam and schedules promote their integer counts."""


PARAMS = {"weights": {"w": jnp.array([1.0, 2.0])}, "arch": {"ops": jnp.array([[0.5, 0.5]])}}
GRADS = {"weights": {"w": jnp.array([0.5, -1.0])}, "arch": {"ops": jnp.array([[1.0, 0.0]])}}


def solver():
    """Momentum, decay and a schedule: each would show if a block that should rest were touched."""
    rate = optax.cosine_decay_schedule(0.1, 100)
    return optim.search_optimizer(
        weights=optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(rate, weight_decay=0.1)),
        arch=optim.exponentiated_gradient(rate),
    )


def test_both_blocks_move_as_they_would_alone():
    search = solver()
    updates, state = search.update(GRADS, search.init(PARAMS), PARAMS)
    eg = optim.exponentiated_gradient(optax.cosine_decay_schedule(0.1, 100))
    expected, _ = eg.update(GRADS["arch"], eg.init(PARAMS["arch"]), PARAMS["arch"])
    chex.assert_trees_all_equal(updates["arch"], expected)
    assert float(jnp.abs(updates["weights"]["w"]).min()) > 0
    assert int(state.arch.count) == 1


@pytest.mark.parametrize(("block", "resting"), [("weights", "arch"), ("arch", "weights")])
@pytest.mark.parametrize("missing", [True, False])
def test_the_other_block_rests(block, resting, missing):
    search = solver()
    _, state = search.update(GRADS, search.init(PARAMS), PARAMS)
    grads = {**GRADS, resting: None} if missing else GRADS
    updates, after = search.update(grads, state, PARAMS, block=block)
    before, kept = getattr(state, resting), getattr(after, resting)
    assert all(a is b for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(kept), strict=True))
    chex.assert_trees_all_equal(updates[resting], jax.tree.map(jnp.zeros_like, PARAMS[resting]))
    both, moved = search.update(GRADS, state, PARAMS)
    chex.assert_trees_all_equal(updates[block], both[block])
    chex.assert_trees_all_equal(getattr(after, block), getattr(moved, block))


def test_alternating_under_jit_ticks_each_schedule_once_a_round():
    search = solver()

    @jax.jit
    def round_(params, state):
        for block in ("arch", "weights"):
            updates, state = search.update({**GRADS}, state, params, block=block)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = round_(*round_(PARAMS, search.init(PARAMS)))
    assert int(state.arch.count) == 2
    assert int(optax.tree.get(state.weights, "ScaleByScheduleState").count) == 2
    assert float(params["arch"]["ops"][0, 1]) > 0.5


def test_the_block_passes_through_a_chain():
    search = optax.chain(optax.identity(), solver())
    updates, _ = search.update({**GRADS, "weights": None}, search.init(PARAMS), PARAMS, block="arch")
    assert not jnp.any(updates["weights"]["w"])


def test_other_extra_arguments_reach_the_block_that_moves():
    search = optim.search_optimizer(weights=optax.polyak_sgd(), arch=optax.sgd(0.1))
    updates, _ = search.update(GRADS, search.init(PARAMS), PARAMS, block="weights", value=jnp.float32(1.25))
    chex.assert_trees_all_close(updates["weights"]["w"], -GRADS["weights"]["w"], atol=1e-6)


def test_inputs_that_do_not_fit_are_refused():
    search = solver()
    state = search.init(PARAMS)
    with pytest.raises(ValueError, match=r"block must be one of \('both', 'weights', 'arch'\), got 'alphas'"):
        search.update(GRADS, state, PARAMS, block="alphas")
    with pytest.raises(ValueError, match="block='both' moves arch, whose gradient is None"):
        search.update({**GRADS, "arch": None}, state, PARAMS)
    with pytest.raises(ValueError, match="params must be a dict with the keys 'weights' and 'arch'"):
        search.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="gradients must be a dict"):
        search.update(GRADS["arch"], state, PARAMS)
