"""Steps of every method on a space with two tables of operations and two optional ones of edges."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from gaea_jax import simplex
from gaea_jax.methods import Method, darts, gaea, gaea_gdas, gaea_pc_darts, gdas, pc_darts, random_search
from gaea_jax.nets import Mixture, supernet
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces.darts import DARTS_SPACE
from gaea_jax.train import SearchState, make_search_step

LEARNING = [gaea, darts, gaea_gdas, gdas, gaea_pc_darts, pc_darts]


class ToyNet(nn.Module):
    """Two linear layers; the mixture scales the hidden units, one for each weight."""

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        weights = jnp.concatenate([mixture.weights[name].ravel() for name in sorted(mixture.weights)])
        return nn.Dense(3)(jnp.tanh(nn.Dense(weights.size)(x)) * weights)


def stepped(method: Method, steps: int, order: str, warmup_steps: int = 0) -> list[SearchState]:
    """The state before the first step, and after each."""
    net = ToyNet()
    tx = search_optimizer(weights=optax.sgd(0.1), arch=method.optimizer(DARTS_SPACE))
    step = jax.jit(make_search_step(net, DARTS_SPACE, method, tx, order=order, warmup_steps=warmup_steps))
    create = jax.jit(lambda key: SearchState.create(net, DARTS_SPACE, method, tx, (5,), key))
    states = [create(jax.random.key(0))]
    images = jax.random.normal(jax.random.key(1), (2, 6, 5))
    labels = jnp.arange(6) % 3
    for _ in range(steps):
        states.append(step(states[-1], {"weights": (images[0], labels), "arch": (images[1], labels)})[0])
    return states


# One method of each form of mixture; compiling the steps would take minutes.
@pytest.mark.parametrize(
    ("factory", "objective", "order"),
    [
        (gaea_pc_darts, "single-level", "joint"),
        (gdas, "single-level", "joint"),
        (random_search, "bilevel", "alternating"),
        (darts, "bilevel-unrolled", "alternating"),
    ],
)
def test_a_step_of_the_supernet_can_be_traced(factory: Callable, objective: str, order: str) -> None:
    method = factory()
    net = supernet(DARTS_SPACE, channels=8, cells=1, num_classes=3, **method.net)
    tx = search_optimizer(weights=optax.sgd(0.1), arch=method.optimizer(DARTS_SPACE))
    step = make_search_step(net, DARTS_SPACE, method, tx, objective=objective, order=order)

    def two_states(key: jax.Array) -> tuple[SearchState, SearchState]:
        state = SearchState.create(net, DARTS_SPACE, method, tx, (8, 8, 3), key)
        batch = (jnp.zeros((2, 8, 8, 3)), jnp.zeros(2, int))
        return state, step(state, {"weights": batch, "arch": batch})[0]

    before, after = jax.eval_shape(two_states, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


def moved(before: SearchState, after: SearchState) -> dict[str, bool]:
    """For each table of the architecture whether the steps moved it."""
    tables = after.params["arch"]
    return {name: not np.array_equal(before.params["arch"][name], tables[name]) for name in tables}


@pytest.mark.parametrize("factory", LEARNING)
def test_a_step_moves_every_table_and_keeps_every_simplex(factory: Callable) -> None:
    method = factory()
    states = stepped(method, 2, "alternating")
    assert moved(states[0], states[1]) == moved(states[1], states[2]) == dict.fromkeys(states[0].params["arch"], True)
    for name, table in method.weights(DARTS_SPACE, states[2].params["arch"]).items():
        simplex.check(table, segments=DARTS_SPACE.choices[name].segments)
    with_edges = factory in (gaea_pc_darts, pc_darts)
    assert len(states[0].params["arch"]) == (4 if with_edges else 2)


def test_a_step_of_random_search_moves_the_weights_alone() -> None:
    before, after = stepped(random_search(), 1, "alternating")
    assert after.params["arch"] == {}
    assert not np.array_equal(*(state.params["weights"]["Dense_1"]["kernel"] for state in (before, after)))


@pytest.mark.parametrize("order", ["joint", "alternating"])
@pytest.mark.parametrize("factory", [gaea_pc_darts, pc_darts])
def test_the_warm_up_freezes_all_tables_and_their_optimisers(factory: Callable, order: str) -> None:
    start, first, second, third = stepped(factory(), 3, order, warmup_steps=2)
    for state in (first, second):
        chex.assert_trees_all_equal(
            (state.params["arch"], state.opt_state.arch), (start.params["arch"], start.opt_state.arch)
        )
        assert not np.array_equal(*(s.params["weights"]["Dense_0"]["kernel"] for s in (start, state)))
    assert all(moved(second, third).values())
    counts = [leaf for leaf in jax.tree.leaves(third.opt_state.arch) if leaf.dtype == jnp.int32]
    assert counts and all(count == 1 for count in counts)
