"""NASP's discrete point, its lazy step, its regulariser and its genotype, against the numbers of the specification."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gaea_jax import optim
from gaea_jax.errors import UsageError
from gaea_jax.methods import Arch, Method, nasp
from gaea_jax.nets import Mixture, burdens
from gaea_jax.spaces.darts import DARTS_NOZERO, DARTS_SPACE, EDGES, NASP_SPACE, NODES
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO

KEY = jax.random.key(0)
NORMAL, REDUCE = (NASP_SPACE.options(cell) for cell in ("normal", "reduce"))
SEGMENTS = [node for node, _ in EDGES]
tables = st.tuples(*(hnp.arrays(np.float32, (14, n), elements=st.floats(0, 1, width=32)) for n in (8, 5)))
few = settings(max_examples=25, deadline=None)


def mixture(method: Method, arch: Arch, memory: Arch | None = None, phase: str = "arch", space: Any = None) -> Mixture:
    return method.mixture(space or NASP_SPACE, arch, memory or {}, KEY, 0, phase)


def still(value: float = 0.5) -> Arch:
    return {"normal": jnp.full((14, 8), value), "reduce": jnp.full((14, 5), value)}


def test_the_first_network_of_the_released_code_only_skips() -> None:
    method = nasp(init_noise=0.0)
    arch = method.init(NASP_SPACE, KEY)
    chex.assert_trees_all_equal(arch, still())
    found = mixture(method, arch)
    assert found.active is not None
    for name, table in found.active.items():
        assert np.argwhere(table).tolist() == [[row, 0] for row in (0, 1, 2, 3, 5, 6, 9, 10)]
        chex.assert_trees_all_equal(found.weights[name], table.astype(jnp.float32))
    assert method.derive(NASP_SPACE, arch, {}, KEY, None).normal[3] == (("skip_connect", 0), ("skip_connect", 1))


def test_noise_at_the_start_is_small_and_of_the_key() -> None:
    arch = nasp().init(NASP_SPACE, KEY)
    noise = np.concatenate([(np.asarray(table) - 0.5).ravel() for table in arch.values()])
    assert 5e-4 < noise.std() < 2e-3 and np.abs(noise).max() < 0.01
    chex.assert_trees_all_equal(arch, nasp().init(NASP_SPACE, KEY))
    other = nasp().init(NASP_SPACE, jax.random.key(1))
    assert not np.array_equal(arch["normal"], other["normal"])
    wild = nasp(init_noise=2.0).init(NASP_SPACE, KEY)["normal"]
    assert wild.min() == 0 and wild.max() == 1


@few
@given(tables)
def test_two_edges_of_a_node_run_an_operation_each(pair: tuple[np.ndarray, np.ndarray]) -> None:
    arch = dict(zip(("normal", "reduce"), map(jnp.asarray, pair), strict=True))
    method = nasp()
    found = mixture(method, arch)
    assert found.active is not None
    for name, table in found.active.items():
        rows = np.asarray(table).sum(axis=1)
        assert set(rows.tolist()) <= {0, 1} and rows.sum() == 8
        assert all(rows[np.array(SEGMENTS) == node].sum() == 2 for node in NODES)
        # The operators for other projects make the same of it.
        expected = optim.one_hot_rows(2, segments=SEGMENTS)(arch[name], jnp.ones(()))
        chex.assert_trees_all_equal(found.weights[name], expected)
    # Only the order of the weights counts.
    for change in (jnp.sqrt, lambda table: 0.25 + table / 2**4):
        changed = {name: change(table) for name, table in arch.items()}
        if all(len(np.unique(changed[name])) == len(np.unique(arch[name])) for name in arch):
            chex.assert_trees_all_equal(mixture(method, changed).active, found.active)
    if all(len(np.unique(table.max(axis=1))) == 14 for table in arch.values()):
        assert method.derive(NASP_SPACE, found.weights, {}, KEY, None) == method.derive(NASP_SPACE, arch, {}, KEY, None)


def test_weights_are_points_of_the_simplex_even_for_a_row_of_zeros() -> None:
    arch = still(0.0)
    arch["normal"] = arch["normal"].at[0].set(0.5).at[1, 2].set(1e-30)
    found = nasp().weights(NASP_SPACE, arch)
    expected = np.full((14, 8), 1 / 8)
    expected[1] = np.eye(8)[2]
    chex.assert_trees_all_close(found["normal"], expected.astype(np.float32))
    chex.assert_trees_all_close(found["reduce"], np.full((14, 5), 0.2, np.float32))


def test_every_edge_of_nas_bench_201_runs_one_operation() -> None:
    arch = {"cell": jax.random.uniform(KEY, (6, 4))}
    found = mixture(nasp(), arch, space=NAS_BENCH_201_NOZERO)
    assert found.active is not None and np.all(found.active["cell"].sum(axis=1) == 1)
    chex.assert_trees_all_equal(found.active["cell"].argmax(axis=1), arch["cell"].argmax(axis=1))


@pytest.mark.parametrize("space", [NAS_BENCH_201, DARTS_SPACE])
def test_a_space_with_none_is_refused(space: Any) -> None:
    with pytest.raises(UsageError, match=f"^space: {space.name} has the operation none, by which a"):
        nasp().init(space, KEY)


@pytest.mark.parametrize("phase", ["weights", "arch", "joint", "eval"])
@pytest.mark.parametrize("keep", ["one", "magnitude"])
def test_the_value_is_that_of_the_discrete_point_and_the_gradient_that_of_all(keep: str, phase: str) -> None:
    method = nasp(keep=keep)
    arch = {"cell": jax.random.uniform(KEY, (6, 4))}
    cost = jax.random.normal(KEY, (6, 4))
    found = mixture(method, arch, phase=phase, space=NAS_BENCH_201_NOZERO)
    assert found.active is not None and found.inactive == ("skip" if phase == "eval" else "probe")
    value = 1 if keep == "one" else arch["cell"]
    chex.assert_trees_all_equal(found.weights["cell"], np.where(found.active["cell"], value, 0).astype(np.float32))

    def total(arch: Arch) -> jax.Array:
        return jnp.sum(cost * mixture(method, arch, phase=phase, space=NAS_BENCH_201_NOZERO).weights["cell"])

    chex.assert_trees_all_equal(jax.grad(total)(arch)["cell"], cost)


@pytest.mark.parametrize("tie", ["first", "sticky"])
def test_of_equal_weights_the_first_or_the_selected_one_wins(tie: str) -> None:
    method = nasp(tie=tie)
    arch = still(0.25)
    # Saturated: on the first edge the operations 3 and 6, and all edges of the last node with their operation 2.
    arch["normal"] = arch["normal"].at[0, jnp.array([3, 6])].set(1.0).at[9:, 2].set(1.0)
    before = {name: np.zeros(table.shape, bool) for name, table in arch.items()}
    before["normal"][0, 6] = before["normal"][11, 2] = before["normal"][13, 2] = True
    # What weighs less does not win by having been selected.
    before["normal"][1, 5] = before["normal"][2, 7] = True
    arch["normal"] = arch["normal"].at[1, 4].set(0.26)
    found = mixture(method, arch, before).active
    assert found is not None
    chosen = np.argwhere(found["normal"]).tolist()
    assert chosen[:2] == [[0, 3 if tie == "first" else 6], [1, 4]]
    assert chosen[2] == [2, 0 if tie == "first" else 7]
    assert chosen[-2:] == ([[9, 2], [10, 2]] if tie == "first" else [[11, 2], [13, 2]])
    chex.assert_trees_all_equal(method.remember(NASP_SPACE, arch, before, 0), found)
    chex.assert_trees_all_equal(method.remember(NASP_SPACE, arch, found, 0), found)
    genotype = method.derive(NASP_SPACE, arch, before, KEY, None)
    assert genotype == NASP_SPACE.decode(found)


def test_the_rule_of_the_released_code_may_derive_other_edges() -> None:
    arch = {"normal": jnp.zeros((14, 8)), "reduce": jnp.zeros((14, 5))}
    # The three edges of node 3.
    rows = jnp.array([[0.9, *[0.88] * 7], [0.5, *[0] * 7], [0.4, *[0] * 7]])
    arch["normal"] = arch["normal"].at[2:5].set(rows)
    np.testing.assert_allclose(jax.nn.softmax(rows).max(axis=1), [0.1272, 0.1906, 0.1757], atol=5e-5)
    sources = [
        [source for _, source in nasp(genotype_rule=rule).derive(NASP_SPACE, arch, {}, KEY, None).normal[1]]
        for rule in ("discrete", "softmax")
    ]
    assert sources == [[0, 1], [1, 2]]


def test_a_step_of_the_architecture_stays_in_the_box() -> None:
    solver = nasp(0.3, weight_decay=0.0).optimizer(NASP_SPACE)
    arch = nasp(init_noise=0.2).init(NASP_SPACE, KEY)
    state = solver.init(arch)
    for seed in range(5):
        updates, state = solver.update(
            jax.tree.map(lambda table, seed=seed: jax.random.normal(jax.random.key(seed), table.shape), arch),
            state,
            arch,
        )
        arch = optax.apply_updates(arch, updates)
        assert all(float(table.min()) >= 0 and float(table.max()) <= 1 for table in arch.values())
    assert any(float(table.min()) == 0 and float(table.max()) == 1 for table in arch.values())
    updates, _ = solver.update(jax.tree.map(jnp.zeros_like, arch), solver.init(arch), arch)
    chex.assert_trees_all_equal(optax.apply_updates(arch, updates), arch)


def test_burdens_are_shares_of_the_parameters_at_twelve_channels() -> None:
    found = burdens(NASP_SPACE)
    assert list(found) == ["normal"]
    counts = dict(zip(NORMAL, (found["normal"] * 5412).round(6).tolist(), strict=True))
    assert counts == {
        "skip_connect": 0,
        "conv_3x1_1x3": 864,
        "dil_conv_3x3": 252,
        "conv 1x1": 144,
        "conv 3x3": 1296,
        "sep_3x3": 504,
        "sep_5x5": 888,
        "sep_7x7": 1464,
    }
    expected = [0, 0.159645, 0.046563, 0.026608, 0.239468, 0.093126, 0.164080, 0.270510]
    np.testing.assert_allclose(found["normal"], expected, atol=1e-6)
    np.testing.assert_allclose(burdens(NAS_BENCH_201)["cell"], [0, 0, 0.1, 0.9, 0])
    assert burdens(DARTS_NOZERO)["normal"].shape == (7,)


def test_only_what_is_selected_in_normal_cells_is_penalised() -> None:
    method = nasp(complexity_weight=1.0)
    arch = still(0.25)
    arch["normal"] = arch["normal"].at[0, 7].set(0.9).at[1:, 0].set(0.9)
    arch["reduce"] = arch["reduce"].at[:, 3].set(0.9)

    def penalty(arch: Arch) -> jax.Array:
        return method.regularizer(NASP_SPACE, arch, mixture(method, arch))

    np.testing.assert_allclose(penalty(arch), 0.270510, atol=1e-6)
    gradient = jax.grad(penalty)(arch)
    assert np.argwhere(gradient["normal"]).tolist() == [[0, 7]] and not gradient["reduce"].any()
    np.testing.assert_allclose(gradient["normal"][0, 7], 0.541020, atol=1e-6)
    assert nasp().regularizer(NASP_SPACE, arch, mixture(nasp(), arch)) == 0


def test_it_selects_the_operation_that_fits_on_every_edge() -> None:
    """Of linear operations with directions of their own one an edge makes the target."""

    def search(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        wanted = jax.random.randint(jax.random.fold_in(key, 1), (6,), 0, 4)
        results, _ = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 2), (24, 24)))
        results = results.reshape(6, 4, 24)
        target = results[jnp.arange(6), wanted].sum(axis=0)
        method = nasp(0.02)
        solver = method.optimizer(NAS_BENCH_201_NOZERO)
        arch = method.init(NAS_BENCH_201_NOZERO, key)

        def loss(arch: Arch) -> jax.Array:
            weights = mixture(method, arch, space=NAS_BENCH_201_NOZERO).weights["cell"]
            return jnp.sum((jnp.einsum("eo,eod->d", weights, results) - target) ** 2)

        def advance(carry: Any, _: None) -> Any:
            arch, state = carry
            updates, state = solver.update(jax.grad(loss)(arch), state, arch)
            return (optax.apply_updates(arch, updates), state), None

        (arch, _), _ = jax.lax.scan(advance, (arch, solver.init(arch)), length=200)
        return arch["cell"].argmax(axis=1), wanted

    found, wanted = jax.jit(jax.vmap(search))(jax.random.split(jax.random.key(5), 5))
    chex.assert_trees_all_equal(found, wanted)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("keep", "all"),
        ("tie", "last"),
        ("genotype_rule", "published"),
        ("complexity_weight", -1.0),
        ("complexity_weight", float("nan")),
        ("init_noise", -0.1),
        ("weight_decay", -1e-3),
    ],
)
def test_what_makes_no_sense_is_refused(argument: str, value: Any) -> None:
    make: Callable[..., Method] = nasp
    with pytest.raises(UsageError) as caught:
        make(**{argument: value})
    assert caught.value.argument == argument
