"""DARTS' second order against float64 differences of the held-out loss after a step of the weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from gaea_jax.methods import gaea
from gaea_jax.nets import Mixture
from gaea_jax.nets.ops import Classifier, ReluConvNorm
from gaea_jax.nets.supernet import MixedCell
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces.nas_bench_201 import NASBench201
from gaea_jax.train import SearchState, cross_entropy, make_search_step, step
from gaea_jax.train.recipe import sgd
from gaea_jax.train.state import compiled_once

SPACE = NASBench201("tiny", ("skip_connect", "nor_conv_3x3", "avg_pool_3x3"))


class Net(nn.Module):
    """A supernet of one cell, which compiles faster than one of three stages."""

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        x = MixedCell(SPACE, jnp.float64, name="cell_0_0")(
            ReluConvNorm(3, 3, dtype=jnp.float64)(x, train), mixture, train
        )
        return Classifier(3)(nn.relu(x))


NET = Net()
WEIGHTS = sgd(lambda step: 0.4 / (1 + step), momentum=0.9, weight_decay=0.01, clip_norm=1.0)
# A unit step against the gradient shows the gradient itself.
METHOD = gaea()._replace(optimizer=lambda space: optax.sgd(1.0))
TX = search_optimizer(weights=WEIGHTS, arch=METHOD.optimizer(SPACE))


def batches() -> dict[str, tuple[jax.Array, jax.Array]]:
    rng = np.random.default_rng(0)
    return {
        stream: (jnp.asarray(rng.normal(size=(6, 8, 8, 1))), jnp.asarray(rng.integers(0, 3, 6)))
        for stream in ("weights", "arch")
    }


@functools.cache
def start() -> SearchState:
    """A state in the middle of a run: uneven weights of the architecture, and momentum from two steps."""
    create = compiled_once(lambda key: SearchState.create(NET, SPACE, METHOD, TX, (8, 8, 1), key))
    state = create(jax.random.key(0))
    arch = {"cell": jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(3), 6))}
    state = state.replace(params={"weights": jax.tree.map(jnp.float64, state.params["weights"]), "arch": arch})
    state = state.replace(collections=jax.tree.map(jnp.float64, state.collections))
    frozen = search_optimizer(weights=WEIGHTS, arch=optax.set_to_zero())
    advance = jax.jit(make_search_step(NET, SPACE, METHOD, frozen, order="joint"))
    state = state.replace(opt_state=frozen.init(state.params))
    for _ in range(2):
        state, _ = advance(state, batches())
    return state.replace(opt_state=TX.init(state.params)._replace(weights=state.opt_state.weights))


def hypergradient(state: SearchState, how: str) -> np.ndarray:
    unrolled = make_search_step(
        NET, SPACE, METHOD, TX, objective="bilevel-unrolled", order="alternating", hypergradient=how
    )
    moved, _ = jax.jit(unrolled)(state, batches())
    return np.asarray(state.params["arch"]["cell"] - moved.params["arch"]["cell"])


@jax.jit
def held_out_loss(state: SearchState, table: jax.Array) -> jax.Array:
    """The loss on the architecture's batch after a step of the weights on theirs, spelt out."""

    def loss(weights: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        variables = {"params": weights, **state.collections}
        logits, _ = NET.apply(variables, batch[0], Mixture({"cell": table}), train=True, mutable=["batch_stats"])
        return cross_entropy(logits, batch[1])

    weights = state.params["weights"]
    updates, _ = WEIGHTS.update(jax.grad(loss)(weights, batches()["weights"]), state.opt_state.weights, weights)
    return loss(optax.apply_updates(weights, updates), batches()["arch"])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def measured() -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        state = start()
        table = np.asarray(state.params["arch"]["cell"])
        moves = 1e-6 * np.eye(table.size).reshape(-1, *table.shape)
        slopes = [held_out_loss(state, table + move) - held_out_loss(state, table - move) for move in moves]
        first = make_search_step(NET, SPACE, METHOD, TX, objective="bilevel", order="alternating")
        moved, _ = jax.jit(first)(state, batches())
        return {
            "differences": np.array(slopes).reshape(table.shape) / 2e-6,
            "exact": hypergradient(state, "exact"),
            "first order": table - np.asarray(moved.params["arch"]["cell"]),
        }


def test_the_exact_hypergradient_is_that_of_float64_differences(measured: dict[str, np.ndarray]) -> None:
    error = relative(measured["exact"], measured["differences"])
    print(f"\nexact against float64 central differences: largest relative error {error:.1e}")
    assert error < 1e-6
    # The first order leaves out what the second adds, and that is not little.
    assert relative(measured["first order"], measured["differences"]) > 0.05


def test_the_finite_difference_of_darts_tends_to_it(
    measured: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {}
    with jax.enable_x64(True):
        for length in (step._DIFFERENCE, 1e-5):
            monkeypatch.setattr(step, "_DIFFERENCE", length)
            errors[length] = relative(hypergradient(start(), "finite-difference"), measured["exact"])
    print("\nfinite difference against exact:", ", ".join(f"{e:.1e} at {length}" for length, e in errors.items()))
    # At DARTS' own length many an activation passes zero on the way, where the gradient of this net jumps.
    assert errors[1e-5] < 1e-7 < errors[0.01]


def test_without_a_direction_there_is_no_second_order(measured: dict[str, np.ndarray]) -> None:
    with jax.enable_x64(True):
        still = search_optimizer(weights=optax.set_to_zero(), arch=METHOD.optimizer(SPACE))
        state = start().replace(opt_state=still.init(start().params))
        unmoved = make_search_step(
            NET,
            SPACE,
            METHOD,
            still,
            objective="bilevel-unrolled",
            order="alternating",
            hypergradient="finite-difference",
        )
        moved, _ = jax.jit(unmoved)(state, batches())
    found = np.asarray(state.params["arch"]["cell"] - moved.params["arch"]["cell"])
    assert relative(found, measured["first order"]) < 1e-9
