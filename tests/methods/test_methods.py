"""What every method must do, whatever its relaxation and optimiser."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.methods import Arch, Method, darts, gaea, gaea_gdas, gdas, get_method, random_search
from gaea_jax.methods.base import PHASES
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO, Genotype, NASBench201

SPACES = [NAS_BENCH_201, NAS_BENCH_201_NOZERO]
FACTORIES = [gaea, darts, gaea_gdas, gdas]
MIXING = [gaea, darts]
KEY = jax.random.key(3)


def moved(method: Method, space: NASBench201) -> Arch:
    """The architecture after a few steps along random gradients."""
    arch = method.init(space, jax.random.key(0))
    state = method.optimizer.init(arch)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = {name: jnp.asarray(rng.normal(size=table.shape), jnp.float32) for name, table in arch.items()}
        updates, state = method.optimizer.update(grads, state, arch)
        arch = optax.apply_updates(arch, updates)
    return arch


def test_get_method() -> None:
    known = {"darts": darts, "gaea": gaea, "gaea_gdas": gaea_gdas, "gdas": gdas, "random": random_search}
    assert {name: get_method(name) for name in known} == known
    with pytest.raises(
        UsageError, match=r"^method: 'enas' is unknown; known are darts, gaea, gaea_gdas, gdas, random$"
    ):
        get_method("enas")


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_the_architecture_is_one_float32_table_a_choice(factory: Callable, space: NASBench201) -> None:
    arch = factory().init(space, jax.random.key(0))
    assert {name: (table.shape, table.dtype) for name, table in arch.items()} == {
        name: (choice.shape, jnp.float32) for name, choice in space.choices.items()
    }
    assert not any(table.weak_type for table in arch.values())
    with jax.enable_x64(True):
        for table in factory().init(space, jax.random.key(0)).values():
            chex.assert_type(table, jnp.float64)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_the_weights_are_a_distribution_on_every_edge(factory: Callable, space: NASBench201) -> None:
    method = factory(0.5)
    weights = jax.jit(lambda arch: method.weights(space, arch))(moved(method, space))["cell"]
    chex.assert_trees_all_close(weights.sum(axis=-1), jnp.ones(6), atol=1e-6)
    assert weights.min() > 0 and np.ptp(weights, axis=-1).min() > 0.1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("factory", MIXING)
def test_a_mixing_method_mixes_with_its_weights_in_every_phase(factory: Callable, phase: str) -> None:
    method = factory(0.5)
    arch = moved(method, NAS_BENCH_201)
    mixture = method.mixture(NAS_BENCH_201, arch, KEY, 0, phase)
    assert mixture.active is None
    chex.assert_trees_all_equal(mixture.weights, method.weights(NAS_BENCH_201, arch))


@pytest.mark.parametrize("factory", MIXING)
def test_the_mixture_is_differentiable(factory: Callable) -> None:
    method = factory()
    cost = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    arch = method.init(NAS_BENCH_201, jax.random.key(0))

    def value(arch: Arch) -> jax.Array:
        return jnp.sum(method.mixture(NAS_BENCH_201, arch, KEY, 0, "arch").weights["cell"] * cost)

    gradient = jax.grad(value)(arch)
    # For GAEA it is the gradient with respect to the mixture itself: no softmax, no normaliser in between.
    if factory is gaea:
        expected = cost
    else:
        p = jax.nn.softmax(arch["cell"])
        expected = p * (cost - jnp.sum(p * cost, axis=-1, keepdims=True))
    chex.assert_trees_all_close(gradient, {"cell": expected}, atol=1e-6)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_regularizer_is_the_divergence_from_uniform(factory: Callable) -> None:
    uneven = jnp.broadcast_to(jnp.array([0.7, 0.1, 0.1, 0.1]), (6, 4))
    method, point = factory(entropy_weight=0.5), factory in (gaea, gaea_gdas)

    def value(method: Method, table: jax.Array) -> jax.Array:
        return method.regularizer(NAS_BENCH_201_NOZERO, {"cell": table if point else jnp.log(table)})

    chex.assert_trees_all_close(value(method, jnp.full((6, 4), 0.25)), 0.0, atol=1e-6)
    chex.assert_trees_all_close(value(method, uneven), 0.5 * 6 * 0.445846372, rtol=1e-6)
    chex.assert_trees_all_close(value(factory(), uneven), 0.0)
    if point:
        # Its gradient, log(p k) + 1 times the weight, pulls towards uniform.
        chex.assert_trees_all_close(
            jax.grad(lambda table: value(method, table))(uneven), 0.5 * (jnp.log(4 * uneven) + 1), rtol=1e-5
        )


def test_the_regularizer_sums_over_tables() -> None:
    rows = jnp.array([[0.7, 0.1, 0.1, 0.1]])
    value = gaea(entropy_weight=1.0).regularizer(NAS_BENCH_201, {"a": rows, "b": jnp.repeat(rows, 2, 0)})
    chex.assert_trees_all_close(value, 3 * 0.445846372, rtol=1e-6)


@pytest.mark.parametrize("factory", FACTORIES)
def test_clip_norm_clips_all_tables_together_before_the_step(factory: Callable) -> None:
    arch = {"a": jnp.full((2, 2), 0.5), "b": jnp.full((1, 2), 0.5)}
    grads = {"a": jnp.array([[6.0, 0.0], [0.0, 0.0]]), "b": jnp.array([[0.0, 8.0]])}
    small = jax.tree.map(lambda leaf: leaf * 0.2, grads)

    def steps(optimizer: optax.GradientTransformationExtraArgs, first: Arch) -> Arch:
        # A second step tells apart what Adam alone, indifferent to the scale of its first gradient, would not.
        state, point = optimizer.init(arch), arch
        for gradient in (first, small):
            updates, state = optimizer.update(gradient, state, point)
            point = optax.apply_updates(point, updates)
        return point

    clipped = steps(factory(0.1, clip_norm=2.0).optimizer, grads)
    chex.assert_trees_all_close(clipped, steps(factory(0.1).optimizer, small), atol=1e-6)
    unclipped = steps(factory(0.1).optimizer, grads)
    assert not np.allclose(unclipped["a"], clipped["a"], atol=1e-3)


@pytest.mark.parametrize("factory", FACTORIES)
def test_equal_weights_derive_the_first_operation(factory: Callable) -> None:
    for space, first in ((NAS_BENCH_201, "none"), (NAS_BENCH_201_NOZERO, "skip_connect")):
        arch = {"cell": jnp.full(space.choices["cell"].shape, 0.2)}
        assert factory().derive(space, arch, KEY, None) == Genotype((first,) * 6)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_derive_takes_the_heaviest_operation(factory: Callable, space: NASBench201) -> None:
    method = factory(0.5)
    arch = moved(method, space)
    best = np.argmax(method.weights(space, arch)["cell"], axis=-1)
    assert method.derive(space, arch, KEY, None) == Genotype(tuple(space.operations[i] for i in best))


def test_gaea_is_sparser_than_darts_after_the_same_steps() -> None:
    rng = np.random.default_rng(0)
    outputs = jnp.asarray(rng.normal(size=(6, 5, 8)), jnp.float32)
    target = outputs[jnp.arange(6), jnp.asarray(rng.integers(5, size=6))]

    def entropy_after(method: Method, steps: int) -> jax.Array:
        def loss(arch: Arch, noise: jax.Array) -> jax.Array:
            weights = method.weights(NAS_BENCH_201, arch)["cell"]
            return jnp.mean((jnp.einsum("eo,eof->ef", weights, outputs) - target - noise) ** 2)

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            arch, state = carry
            grads = jax.grad(loss)(arch, 0.1 * jax.random.normal(key, target.shape))
            updates, state = method.optimizer.update(grads, state, arch)
            return (optax.apply_updates(arch, updates), state), None

        arch = method.init(NAS_BENCH_201, jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), steps)
        (arch, _), _ = jax.lax.scan(step, (arch, method.optimizer.init(arch)), keys)
        return simplex.entropy(method.weights(NAS_BENCH_201, arch)["cell"]).mean()

    gaea_entropy, darts_entropy = entropy_after(gaea(), 300), entropy_after(darts(), 300)
    assert gaea_entropy < 0.9 * darts_entropy and darts_entropy < np.log(5)
