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
from gaea_jax.methods import (
    Arch,
    Method,
    darts,
    entrannas,
    entrannas_dst,
    gaea,
    gaea_entrannas,
    gaea_entrannas_dst,
    gaea_gdas,
    gaea_pc_darts,
    gdas,
    get_method,
    nasp,
    pc_darts,
    random_search,
)
from gaea_jax.methods.base import PHASES, Space
from gaea_jax.nets import Mixture
from gaea_jax.spaces.darts import DARTS_NOZERO, DARTS_SPACE
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_1, SPACE_2, SPACE_3
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO, Genotype, NASBench201

SPACES = [NAS_BENCH_201, NAS_BENCH_201_NOZERO]
FACTORIES = [gaea, darts, gaea_gdas, gdas]
WITH_EDGES = [gaea_pc_darts, pc_darts]
CASES = [
    *[(factory, space) for factory in FACTORIES for space in (*SPACES, DARTS_SPACE, DARTS_NOZERO)],
    *[(factory, space) for factory in WITH_EDGES for space in (DARTS_SPACE, DARTS_NOZERO)],
]
# Whose inputs are no option: every method learns them.
ONE_SHOT = [(gaea, SPACE_1), (darts, SPACE_3), (gaea_pc_darts, SPACE_2), (pc_darts, SPACE_1)]
MIXING = [gaea, darts]
POINTS = [gaea, gaea_gdas, gaea_pc_darts]
KEY = jax.random.key(3)


def moved(method: Method, space: Space) -> Arch:
    """The architecture after a few steps along random gradients."""
    arch = method.init(space, jax.random.key(0))
    optimizer = method.optimizer(space)
    state = optimizer.init(arch)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = {name: jnp.asarray(rng.normal(size=table.shape), jnp.float32) for name, table in arch.items()}
        updates, state = optimizer.update(grads, state, arch)
        arch = optax.apply_updates(arch, updates)
    return arch


def simplices(space: Space, name: str, table: jax.Array) -> list[np.ndarray]:
    """The points of the simplex in a table of a space."""
    segments = space.choices[name].segments
    if segments is None:
        return list(np.asarray(table))
    return [np.asarray(table)[np.array(segments) == number] for number in sorted(set(segments))]


def test_get_method() -> None:
    known = {
        "darts": darts,
        "entrannas": entrannas,
        "entrannas_dst": entrannas_dst,
        "gaea": gaea,
        "gaea_entrannas": gaea_entrannas,
        "gaea_entrannas_dst": gaea_entrannas_dst,
        "gaea_gdas": gaea_gdas,
        "gaea_pc_darts": gaea_pc_darts,
        "gdas": gdas,
        "nasp": nasp,
        "pc_darts": pc_darts,
        "random": random_search,
    }
    assert {name: get_method(name) for name in known} == known
    with pytest.raises(UsageError, match=rf"^method: 'enas' is unknown; known are {', '.join(known)}$"):
        get_method("enas")


@pytest.mark.parametrize("factory", [*FACTORIES, random_search])
def test_only_some_methods_need_options_of_the_net(factory: Callable) -> None:
    assert factory().net == {}
    with pytest.raises(TypeError, match="does not support item assignment"):
        factory().net["partial"] = 2


@pytest.mark.parametrize(("factory", "space"), [*CASES, *ONE_SHOT])
def test_the_architecture_is_one_float32_table_a_choice(factory: Callable, space: Space) -> None:
    arch = factory().init(space, jax.random.key(0))
    assert {name: (table.shape, table.dtype) for name, table in arch.items()} == {
        name: (choice.shape, jnp.float32)
        for name, choice in space.choices.items()
        if factory in WITH_EDGES or not choice.optional
    }
    assert not any(table.weak_type for table in arch.values())
    with jax.enable_x64(True):
        for table in factory().init(space, jax.random.key(0)).values():
            chex.assert_type(table, jnp.float64)


@pytest.mark.parametrize(("factory", "space"), [*CASES, *ONE_SHOT])
def test_the_weights_are_a_distribution_on_every_edge_and_node(factory: Callable, space: Space) -> None:
    method = factory(0.5)
    arch = moved(method, space)
    weights = jax.jit(lambda arch: method.weights(space, arch))(arch)
    assert set(weights) == set(arch)
    for name, table in weights.items():
        for row in simplices(space, name, table):
            np.testing.assert_allclose(row.sum(), 1, atol=1e-6)
            assert row.min() > 0 and np.ptp(row) > (0.01 if table.ndim == 2 else 0)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("factory", MIXING)
def test_a_mixing_method_mixes_with_its_weights_in_every_phase(factory: Callable, phase: str) -> None:
    method = factory(0.5)
    arch = moved(method, NAS_BENCH_201)
    mixture = method.mixture(NAS_BENCH_201, arch, {}, KEY, 0, phase)
    assert mixture.active is None
    chex.assert_trees_all_equal(mixture.weights, method.weights(NAS_BENCH_201, arch))


@pytest.mark.parametrize("factory", MIXING)
def test_the_mixture_is_differentiable(factory: Callable) -> None:
    method = factory()
    cost = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
    arch = method.init(NAS_BENCH_201, jax.random.key(0))

    def value(arch: Arch) -> jax.Array:
        return jnp.sum(method.mixture(NAS_BENCH_201, arch, {}, KEY, 0, "arch").weights["cell"] * cost)

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
        arch = {"cell": table if point else jnp.log(table)}
        return method.regularizer(NAS_BENCH_201_NOZERO, arch, Mixture(arch))

    chex.assert_trees_all_close(value(method, jnp.full((6, 4), 0.25)), 0.0, atol=1e-6)
    chex.assert_trees_all_close(value(method, uneven), 0.5 * 6 * 0.445846372, rtol=1e-6)
    chex.assert_trees_all_close(value(factory(), uneven), 0.0)
    if point:
        # Its gradient, log(p k) + 1 times the weight, pulls towards uniform.
        chex.assert_trees_all_close(
            jax.grad(lambda table: value(method, table))(uneven), 0.5 * (jnp.log(4 * uneven) + 1), rtol=1e-5
        )


@pytest.mark.parametrize("factory", WITH_EDGES)
def test_the_regularizer_sums_over_the_operations_of_all_tables_and_leaves_out_the_edges(factory: Callable) -> None:
    method = factory(0.5, entropy_weight=0.5)
    arch = moved(method, DARTS_SPACE)
    weights = method.weights(DARTS_SPACE, arch)
    operations = np.concatenate([weights["normal"], weights["reduce"]]).astype(float)
    expected = 0.5 * np.sum(operations * np.log(8 * operations))
    np.testing.assert_allclose(method.regularizer(DARTS_SPACE, arch, Mixture(arch)), expected, rtol=1e-5)
    gradient = jax.grad(lambda arch: method.regularizer(DARTS_SPACE, arch, Mixture(arch)))(arch)
    assert all((np.asarray(table) == 0).all() == name.endswith("_edges") for name, table in gradient.items())


@pytest.mark.parametrize("factory", [*FACTORIES, *WITH_EDGES])
def test_clip_norm_clips_all_tables_together_before_the_step(factory: Callable) -> None:
    start = factory().init(DARTS_SPACE, KEY)
    grads = {name: jnp.zeros_like(table) for name, table in start.items()}
    first, *_, last = grads
    grads[first] = grads[first].at[0, 0].set(6.0)
    grads[last] = grads[last].at[(-1,) * grads[last].ndim].set(8.0)
    small = jax.tree.map(lambda leaf: leaf * 0.2, grads)

    def steps(method: Method, first: Arch) -> Arch:
        optimizer = method.optimizer(DARTS_SPACE)
        # A second step tells apart what Adam alone, indifferent to the scale of its first gradient, would not.
        state, point = optimizer.init(start), start
        for gradient in (first, small):
            updates, state = optimizer.update(gradient, state, point)
            point = optax.apply_updates(point, updates)
        return point

    clipped = steps(factory(0.1, clip_norm=2.0), grads)
    chex.assert_trees_all_close(clipped, steps(factory(0.1), small), atol=1e-6)
    unclipped = steps(factory(0.1), grads)
    assert not np.allclose(unclipped[last], clipped[last], atol=1e-3)


@pytest.mark.parametrize("factory", FACTORIES)
def test_equal_weights_derive_the_first_operation(factory: Callable) -> None:
    for space, first in ((NAS_BENCH_201, "none"), (NAS_BENCH_201_NOZERO, "skip_connect")):
        arch = {"cell": jnp.full(space.choices["cell"].shape, 0.2)}
        assert factory().derive(space, arch, {}, KEY, None) == Genotype((first,) * 6)


@pytest.mark.parametrize(("factory", "space"), [case for case in CASES if case[1] not in SPACES])
def test_equal_weights_derive_the_first_inputs_and_operation_of_darts(factory: Callable, space: Space) -> None:
    arch = {name: table if factory in POINTS else 0 * table for name, table in factory().init(space, KEY).items()}
    genotype = factory().derive(space, arch, {}, KEY, None)
    assert genotype.normal == genotype.reduce == ((("max_pool_3x3", 0), ("max_pool_3x3", 1)),) * 4


@pytest.mark.parametrize("factory", WITH_EDGES)
def test_the_edges_count_in_the_derivation(factory: Callable) -> None:
    arch = {name: 0 * table for name, table in factory().init(DARTS_SPACE, KEY).items()}
    if factory in POINTS:
        arch = factory().init(DARTS_SPACE, KEY)
    last = arch["reduce_edges"].at[13].add(0.5)
    genotype = factory().derive(DARTS_SPACE, {**arch, "reduce_edges": last}, {}, KEY, None)
    assert genotype.reduce[3] == (("max_pool_3x3", 0), ("max_pool_3x3", 4))
    assert genotype.normal[3] == (("max_pool_3x3", 0), ("max_pool_3x3", 1))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_derive_takes_the_heaviest_operation(factory: Callable, space: NASBench201) -> None:
    method = factory(0.5)
    arch = moved(method, space)
    best = np.argmax(method.weights(space, arch)["cell"], axis=-1)
    assert method.derive(space, arch, {}, KEY, None) == Genotype(tuple(space.operations[i] for i in best))


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
            updates, state = optimizer.update(grads, state, arch)
            return (optax.apply_updates(arch, updates), state), None

        arch, optimizer = method.init(NAS_BENCH_201, jax.random.key(0)), method.optimizer(NAS_BENCH_201)
        keys = jax.random.split(jax.random.key(1), steps)
        (arch, _), _ = jax.lax.scan(step, (arch, optimizer.init(arch)), keys)
        return simplex.entropy(method.weights(NAS_BENCH_201, arch)["cell"]).mean()

    gaea_entropy, darts_entropy = entropy_after(gaea(), 300), entropy_after(darts(), 300)
    assert gaea_entropy < 0.9 * darts_entropy and darts_entropy < np.log(5)
