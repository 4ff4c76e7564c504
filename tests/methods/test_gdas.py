from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.methods import Arch, Method, gaea_gdas, gdas
from gaea_jax.nets import Mixture
from gaea_jax.spaces.darts import DARTS_SPACE
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201

WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(5), size=6).astype(np.float32)
FACTORIES = [gdas, gaea_gdas]


def arch_of(factory: Any) -> Arch:
    """The architecture whose weights are `WEIGHTS`."""
    return {"cell": jnp.asarray(WEIGHTS if factory is gaea_gdas else np.log(WEIGHTS))}


def sample(method: Method, arch: Arch, key: jax.Array, step: int = 0, phase: str = "arch") -> Mixture:
    return method.mixture(NAS_BENCH_201, arch, {}, key, step, phase)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("phase", ["weights", "arch", "joint"])
def test_a_sample_is_exactly_one_hot_and_only_that_option_runs(factory: Any, phase: str) -> None:
    mixture = jax.jit(lambda arch, key: sample(factory(), arch, key, phase=phase))(arch_of(factory), jax.random.key(0))
    weights, active = mixture.weights["cell"], mixture.active["cell"]
    assert jnp.array_equal(weights, active.astype(jnp.float32)) and active.dtype == bool
    assert jnp.array_equal(active.sum(axis=-1), jnp.ones(6, int))
    assert mixture.inactive == "scalar"


@pytest.mark.parametrize("temperature", [0.1, 10.0])
@pytest.mark.parametrize("factory", FACTORIES)
def test_options_are_sampled_as_often_as_they_weigh_whatever_the_temperature(factory: Any, temperature: float) -> None:
    method, keys = factory(temperature=temperature), jax.random.split(jax.random.key(1), 4000)
    arch = arch_of(factory)
    drawn = jax.jit(jax.vmap(lambda key: sample(method, arch, key).active["cell"]))(keys)
    # Six standard errors of a share of 4,000 draws.
    np.testing.assert_allclose(drawn.mean(axis=0), WEIGHTS, atol=6 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_gradient_is_that_of_the_softmax_at_the_temperature(factory: Any) -> None:
    cost = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32)
    method, arch, key = factory(temperature=2.0), arch_of(factory), jax.random.key(2)
    gradient = jax.grad(lambda arch: jnp.sum(sample(method, arch, key).weights["cell"] * cost))(arch)

    noise = jax.random.gumbel(jax.random.split(key, 1)[0], (6, 5))

    def soft(arch: Arch) -> jax.Array:
        logits = jnp.log(arch["cell"]) if factory is gaea_gdas else arch["cell"]
        return jnp.sum(jax.nn.softmax((logits + noise) / 2.0) * cost)

    chex.assert_trees_all_close(gradient, jax.grad(soft)(arch), rtol=1e-4, atol=1e-6)
    assert jnp.all(gradient["cell"] != 0)


def test_the_temperature_may_be_a_schedule_of_the_step() -> None:
    def norm(method: Method, step: int) -> jax.Array:
        cost = jnp.arange(5.0)
        arch = arch_of(gdas)
        gradient = jax.grad(lambda arch: jnp.sum(sample(method, arch, jax.random.key(0), step).weights["cell"] * cost))
        return jnp.linalg.norm(gradient(arch)["cell"])

    falling = gdas(temperature=lambda step: 10.0 - step)
    chex.assert_trees_all_close(norm(falling, 9), norm(gdas(temperature=1.0), 0), rtol=1e-6)
    assert norm(falling, 9) > 2 * norm(falling, 0)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_heaviest_options_stand_for_the_architecture_in_evaluation(factory: Any) -> None:
    for key in jax.random.split(jax.random.key(0), 3):
        mixture = sample(factory(), arch_of(factory), key, phase="eval")
        chex.assert_trees_all_equal(np.argmax(mixture.active["cell"], axis=-1), np.argmax(WEIGHTS, axis=-1))
        assert jnp.array_equal(mixture.weights["cell"], mixture.active["cell"].astype(jnp.float32))


def test_a_point_with_a_zero_is_sampled_without_nan() -> None:
    arch = {"cell": jnp.tile(jnp.array([0.0, 0.0, 0.25, 0.25, 0.5]), (6, 1))}
    method = gaea_gdas(min_prob=0.0)
    for key in jax.random.split(jax.random.key(0), 5):
        mixture = sample(method, arch, key)
        assert not mixture.active["cell"][:, :2].any()
        gradient = jax.grad(lambda arch: jnp.sum(sample(method, arch, key).weights["cell"] ** 2))(arch)  # noqa: B023
        assert jnp.isfinite(gradient["cell"]).all()


@pytest.mark.parametrize("factory", FACTORIES)
def test_both_cells_of_darts_are_sampled_apart_and_evaluated_as_the_derived_network(factory: Any) -> None:
    method = factory()
    arch = method.init(DARTS_SPACE, jax.random.key(0))
    mixture = method.mixture(DARTS_SPACE, arch, {}, jax.random.key(1), 0, "arch")
    assert list(mixture.weights) == list(mixture.active) == ["normal", "reduce"]
    for name, table in mixture.weights.items():
        chex.assert_trees_all_equal(table, mixture.active[name].astype(jnp.float32))
        assert jnp.array_equal(table.sum(axis=-1), jnp.ones(14))
    assert not jnp.array_equal(mixture.weights["normal"], mixture.weights["reduce"])
    genotype = method.derive(DARTS_SPACE, arch, {}, jax.random.key(2), None)
    evaluated = method.mixture(DARTS_SPACE, arch, {}, jax.random.key(3), 0, "eval")
    chex.assert_trees_all_equal(evaluated, Mixture.derived(DARTS_SPACE.encode(genotype)))
