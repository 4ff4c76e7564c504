from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax import simplex
from gaea_jax.methods import Arch, Method, gaea
from gaea_jax.nets import Mixture
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO, NASBench201

GRADIENT = {"cell": jnp.tile(jnp.array([1.0, 0.0, 0.5, -1.0]), (6, 1))}


def rows(*values: float) -> Arch:
    return {"cell": jnp.tile(jnp.array(values), (6, 1))}


def after(steps: int, method: Method, arch: Arch | None = None) -> Arch:
    """The architecture, uniform at first, after steps along the same gradient."""
    arch = method.init(NAS_BENCH_201_NOZERO, jax.random.key(0)) if arch is None else arch
    optimizer = method.optimizer(NAS_BENCH_201_NOZERO)

    def step(carry: tuple, _: Any) -> tuple[tuple, None]:
        arch, state = carry
        updates, state = optimizer.update(GRADIENT, state, arch)
        return (optax.apply_updates(arch, updates), state), None

    return jax.lax.scan(step, (arch, optimizer.init(arch)), length=steps)[0][0]


@pytest.mark.parametrize("space", [NAS_BENCH_201, NAS_BENCH_201_NOZERO])
def test_starts_uniform_and_mixes_with_the_point_itself(space: NASBench201) -> None:
    method = gaea()
    arch = method.init(space, jax.random.key(7))
    width = len(space.operations)
    chex.assert_trees_all_equal(arch, {"cell": jnp.full((6, width), 1 / width)})
    chex.assert_trees_all_equal(method.weights(space, arch), arch)


@pytest.mark.parametrize("clamp", ["shift-invariant", "release"])
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, (0.22842290029470, 0.25244634642820, 0.24013439283020, 0.27899636044690)),
        (10, (0.07839411721684, 0.21309730428862, 0.12925004855316, 0.57925852952994)),
    ],
)
def test_exponentiated_gradient_at_the_papers_rate(clamp: Any, steps: int, expected: tuple[float, ...]) -> None:
    chex.assert_trees_all_close(after(steps, gaea(clamp=clamp)), rows(*expected), rtol=2e-6)


def test_the_released_clamp() -> None:
    arch = after(1000, gaea(1.0, clamp="release"))
    chex.assert_trees_all_close(arch, rows(*(3.6787944e-06,) * 3, 0.99998896362), rtol=2e-5)
    chex.assert_trees_all_close(arch["cell"].sum(axis=-1), jnp.ones(6), atol=1e-6)
    chex.assert_trees_all_close(simplex.entropy(arch["cell"]), jnp.full(6, 1.4913e-4), rtol=2e-3)


@pytest.mark.parametrize("floor", [1e-5, 1e-3])
def test_no_weight_falls_below_the_floor(floor: float) -> None:
    arch = after(1000, gaea(1.0, min_prob=floor))
    chex.assert_trees_all_close(
        arch, rows(*(floor / (1 + 3 * floor),) * 3, 1 / (1 + 3 * floor)), rtol=1e-2 * (1e-3 / floor) ** 0.5
    )
    assert arch["cell"].min() > 0.9 * floor


def test_the_floor_is_on_by_default_and_lets_weights_return() -> None:
    chex.assert_trees_all_equal(after(100, gaea(1.0)), after(100, gaea(1.0, min_prob=1e-5)))
    vertex = rows(1.0, 0.0, 0.0, 0.0)
    assert after(30, gaea(1.0), vertex)["cell"][0, 3] > 0.9
    chex.assert_trees_all_equal(after(30, gaea(1.0, min_prob=0.0), vertex), vertex)


def test_a_constant_added_to_a_row_of_the_gradient_changes_nothing() -> None:
    optimizer, arch = gaea().optimizer(NAS_BENCH_201_NOZERO), rows(0.1, 0.2, 0.3, 0.4)
    state = optimizer.init(arch)
    shifted = {"cell": GRADIENT["cell"] + jnp.arange(6.0)[:, None]}
    one, _ = optimizer.update(GRADIENT, state, arch)
    other, _ = optimizer.update(shifted, state, arch)
    chex.assert_trees_all_close(one, other, atol=1e-6)


def test_the_rate_may_be_a_schedule_of_the_step() -> None:
    scheduled = gaea(lambda count: jnp.where(count == 0, 0.1, 0.0))
    chex.assert_trees_all_close(after(5, scheduled), after(1, gaea(0.1)), rtol=1e-6)


def test_the_entropic_weight_shrinks_log_probabilities() -> None:
    rate, weight = 0.1, 0.5
    method = gaea(rate, entropy_weight=weight, min_prob=0.0)
    arch = rows(0.7, 0.1, 0.15, 0.05)

    def regularizer(arch: Arch) -> jax.Array:
        return method.regularizer(NAS_BENCH_201_NOZERO, arch, Mixture(arch))

    optimizer = method.optimizer(NAS_BENCH_201_NOZERO)
    updates, _ = optimizer.update(jax.grad(regularizer)(arch), optimizer.init(arch), arch)
    expected = simplex.normalise(np.asarray(arch["cell"]) ** (1 - rate * weight))
    chex.assert_trees_all_close(optax.apply_updates(arch, updates), {"cell": expected}, rtol=1e-5)


def test_unknown_clamps_are_refused() -> None:
    with pytest.raises(ValueError, match="clamp: need 'shift-invariant' or 'release', got 'none'"):
        gaea(clamp="none").optimizer(NAS_BENCH_201)  # type: ignore[arg-type]
