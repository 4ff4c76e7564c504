"""Engine and transit cells: what is derived, what the cells read, and differentiable sparsification."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.methods import entrannas, entrannas_dst, gaea_entrannas, gaea_entrannas_dst
from gaea_jax.methods.entrannas import heaviest
from gaea_jax.methods.entrannas_dst import sparsified
from gaea_jax.spaces import derive, get_space
from gaea_jax.spaces.darts import CELLS, EDGES, NODES

SPACE = get_space("darts_nozero")
KEY = jax.random.key(0)
# The node with two edges and three operations of the numeric example.
POINT = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
NODE_OF_EDGE = tuple(NODES.index(node) for node, _ in EDGES)


def weights_at(threshold: float, normalise: str = "edge") -> np.ndarray:
    return np.asarray(sparsified(jnp.log(jnp.asarray(POINT)), jnp.array([threshold]), (0, 0), normalise))


@pytest.mark.parametrize(
    ("threshold", "edge", "node"),
    [
        (0.45, [[0.8846, 0.1154, 0], [0, 0.9167, 0.0833]], [[0.3710, 0.0484, 0], [0, 0.5323, 0.0484]]),
        (0.7, [[1, 0, 0], [0, 1, 0]], [[0.3077, 0, 0], [0, 0.6923, 0]]),
        (0.9, [[0, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0]]),
    ],
)
def test_numeric_example(threshold: float, edge: list, node: list) -> None:
    """Oracle 2."""
    np.testing.assert_allclose(weights_at(threshold), edge, atol=5e-5)
    np.testing.assert_allclose(weights_at(threshold, "node"), node, atol=5e-5)


@pytest.mark.parametrize(
    ("threshold", "normalise", "of_logits", "of_beta"),
    [(0.7, "edge", 0, 0), (0.7, "node", 0.6657, 0.1864), (0.45, "edge", 0.7811, 0.4394)],
)
def test_gradients_of_the_example(threshold: float, normalise: str, of_logits: float, of_beta: float) -> None:
    """Oracle 4: an edge with a single connection has weight 1, whatever the logits."""

    def weights(logits: jax.Array, beta: jax.Array) -> jax.Array:
        return sparsified(jax.nn.log_softmax(logits), jax.nn.sigmoid(beta), (0, 0), normalise)

    with jax.enable_x64(True):
        beta = np.array([math.log(threshold / (1 - threshold))])
        found = jax.jacobian(weights, argnums=(0, 1))(np.log(POINT), beta)
    largest = [np.abs(leaf).max() for leaf in found]
    np.testing.assert_allclose(largest, [of_logits, of_beta], atol=6e-5)
    if not of_logits:
        assert max(largest) < 1e-6


def test_thresholds_are_logistic() -> None:
    """Oracle 5."""
    betas = {0.5: 0.0, 0.119203: -2.0, 0.45: -0.200671}
    for threshold, beta in betas.items():
        arch = entrannas_dst(threshold=threshold).init(SPACE, KEY)
        np.testing.assert_allclose(arch["normal_thresholds"], [beta] * 4, atol=1e-5)


def test_at_the_start_every_connection_is_there() -> None:
    """Oracle 6."""
    method = entrannas_dst(threshold=0.119203)
    memory = method.remember(SPACE, method.init(SPACE, KEY), {}, 0)
    assert all(np.all(memory[cell]) for cell in CELLS)


def test_every_node_keeps_its_heaviest_and_loses_more_as_its_threshold_grows() -> None:
    """Oracle 3."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = jax.nn.log_softmax(jnp.asarray(rng.normal(0, 2, (len(EDGES), 7)), jnp.float32))
        before = np.ones(table.shape, bool)
        for beta in (-30.0, -2.0, 0.0, 1.0, 3.0, 30.0):
            found = np.asarray(sparsified(table, jax.nn.sigmoid(jnp.full(4, beta)), NODE_OF_EDGE)) > 0
            assert not np.any(found & ~before)
            before = found
            for node in range(len(NODES)):
                rows = [edge for edge, of in enumerate(NODE_OF_EDGE) if of == node]
                assert found[rows].any()
                assert found[rows].ravel()[np.argmax(table[np.array(rows)])]


def test_gradients_are_finite_where_all_but_one_are_gone() -> None:
    logits = jnp.array([[80.0, -80.0], [0.0, -90.0]])

    def total(logits: jax.Array, beta: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(sparsified(jax.nn.log_softmax(logits / 0.01), jax.nn.sigmoid(beta), (0, 0))))

    chex.assert_tree_all_finite(jax.grad(total, argnums=(0, 1))(logits, jnp.array([40.0])))


def test_no_more_connections_than_the_limit() -> None:
    method = entrannas_dst(max_connections=3)
    memory = method.remember(SPACE, method.init(SPACE, KEY), {}, 0)
    for cell in CELLS:
        assert np.bincount(NODE_OF_EDGE, np.asarray(memory[cell]).sum(axis=1)).tolist() == [3, 3, 3, 3]


def test_temperature_goes_from_the_heaviest_to_uniform() -> None:
    """Oracle 1."""
    arch = {cell: jax.random.normal(KEY, (14, 7)) for cell in CELLS}

    def mixed(temperature: float) -> np.ndarray:
        method = entrannas(temperature=temperature)
        return np.asarray(
            method.mixture(SPACE, arch, method.remember(SPACE, arch, {}, 0), KEY, 0, "joint").weights["normal"]
        )

    for temperature in (0.5, 1.0, 2.0):
        np.testing.assert_allclose(mixed(temperature).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed(1e-3), np.eye(7)[np.argmax(arch["normal"], axis=1)], atol=1e-5)
    np.testing.assert_allclose(mixed(1e5), 1 / 7, atol=1e-5)


@pytest.mark.parametrize("make", [entrannas, gaea_entrannas])
def test_two_edges_a_node_as_darts_derives_them(make) -> None:
    """Oracle 17."""
    method = make()
    arch = {
        cell: jax.nn.softmax(jax.random.normal(jax.random.key(number), (14, 7))) for number, cell in enumerate(CELLS)
    }
    memory = method.remember(SPACE, arch, {}, 0)
    genotype = method.derive(SPACE, arch, memory, KEY, None)
    assert genotype == derive(SPACE, method.weights(SPACE, arch))
    for cell in (genotype.normal, genotype.reduce):
        assert [len({source for _, source in pairs}) for pairs in cell] == [2, 2, 2, 2]
    mixture = method.mixture(SPACE, arch, memory, KEY, 0, "arch")
    assert mixture.active is None
    chex.assert_trees_all_equal(mixture.at(False).active, memory)
    chex.assert_trees_all_equal(mixture.at(False).weights, jax.tree.map(lambda table: table.astype(float), memory))


def test_two_connections_may_be_of_one_edge() -> None:
    """Oracle 18: the first edge of the node has both."""
    weights = jnp.array([[0.5, 0.45, 0.05], [0.4, 0.3, 0.3]])
    assert np.argwhere(heaviest(weights, (0, 0), 2)).tolist() == [[0, 0], [0, 1]]
    method = entrannas(selection="connections")
    logits = np.zeros((14, 7), np.float32)
    logits[0, [1, 3]] = 5.0, 4.9
    arch = dict.fromkeys(CELLS, jnp.asarray(logits))
    genotype = method.derive(SPACE, arch, method.remember(SPACE, arch, {}, 0), KEY, None)
    options = SPACE.operations
    assert genotype.normal[0] == ((options[1], 0), (options[3], 0))
    assert SPACE.decode(SPACE.encode(genotype)) == genotype


def test_the_best_operation_of_an_edge_is_what_is_asked_for() -> None:
    logits = np.zeros((14, 7), np.float32)
    logits[:, 2] = 0.1
    arch = {**dict.fromkeys(CELLS, jnp.asarray(logits)), **{f"{cell}_thresholds": jnp.zeros(4) for cell in CELLS}}
    several, best = entrannas_dst(), entrannas_dst(per_edge="best")
    memory = several.remember(SPACE, arch, {}, 0)
    every = several.derive(SPACE, arch, memory, KEY, None)
    assert [len(pairs) for pairs in every.normal] == [14, 21, 28, 35]
    one = best.derive(SPACE, arch, memory, KEY, None)
    assert one.reduce == tuple(tuple((SPACE.operations[2], source) for source in range(node)) for node in NODES)


@pytest.mark.parametrize("make", [entrannas_dst, gaea_entrannas_dst])
def test_engine_and_transit_read_the_same_connections(make) -> None:
    method = make(transit_weight="mixture")
    arch = method.init(SPACE, KEY)
    memory = method.remember(SPACE, arch, {}, 0)
    mixture = method.mixture(SPACE, arch, memory, KEY, 0, "joint")
    chex.assert_trees_all_equal(mixture.active, memory)
    chex.assert_trees_all_equal(mixture.weights, mixture.at(False).weights)
    measures = method.measures(SPACE, arch, memory, 0)
    np.testing.assert_allclose(measures["thresholds"]["normal"], 0.5)
    assert measures["connections"]["reduce"].tolist() == [14, 21, 28, 35]
    np.testing.assert_allclose(measures["equivalence_gap"], 6 / 7, atol=1e-3)

    def weigh(arch):
        return sum(
            jnp.sum(table) for table in method.mixture(SPACE, arch, memory, KEY, 0, "joint").at(False).weights.values()
        )

    chex.assert_trees_all_equal(jax.grad(weigh)(arch), jax.tree.map(jnp.zeros_like, arch))


def test_thresholds_do_not_decay_and_tables_do() -> None:
    method = entrannas_dst(weight_decay=1.0)
    arch = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), method.init(SPACE, KEY))
    tx = method.optimizer(SPACE)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, arch), tx.init(arch), arch)
    assert np.all(updates["normal"] < 0)
    assert not np.any(updates["normal_thresholds"])


def test_thresholds_move_by_adam_beside_exponentiated_gradient() -> None:
    method = gaea_entrannas_dst(threshold_learning_rate=1e-2)
    arch = method.init(SPACE, KEY)
    tx = method.optimizer(SPACE)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, arch), tx.init(arch), arch)
    moved = optax.apply_updates(arch, updates)
    np.testing.assert_allclose(moved["reduce"].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(moved["reduce_thresholds"], -1e-2, rtol=1e-4)


def test_sparsity_weight_pulls_thresholds_up() -> None:
    method = entrannas_dst(sparsity_weight=2.0)
    arch = method.init(SPACE, KEY)
    mixture = method.mixture(SPACE, arch, method.remember(SPACE, arch, {}, 0), KEY, 0, "joint")
    value, grads = jax.value_and_grad(lambda arch: method.regularizer(SPACE, arch, mixture))(arch)
    np.testing.assert_allclose(value, 1.0)
    assert np.all(grads["normal_thresholds"] < 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_useful_connection_of_three_edges_is_found(seed: int) -> None:
    """Oracle 22: a node that sums linear operations, of which one makes the target."""
    rng = np.random.default_rng(seed)
    inputs, operations = rng.normal(size=(3, 2048, 8)), rng.normal(size=(3, 4, 8, 8)) / np.sqrt(8)
    features = jnp.asarray(np.einsum("ebi,ekio->ekbo", inputs, operations), jnp.float32)
    target = features[1, 2]
    params = {"logits": 1e-3 * jax.random.normal(jax.random.key(seed), (3, 4)), "beta": jnp.zeros(1)}

    def mixed(params):
        return sparsified(jax.nn.log_softmax(params["logits"]), jax.nn.sigmoid(params["beta"]), (0, 0, 0))

    def loss(params):
        return jnp.mean((jnp.tensordot(mixed(params), features, 2) - target) ** 2)

    tx = optax.adam(0.05)

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, steps):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    found = np.asarray(mixed(run(params, 500)))
    assert found[1, 2] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: entrannas(selection="nodes"), "selection"),
        (lambda: entrannas_dst(normalise="cell"), "normalise"),
        (lambda: entrannas_dst(transit_weight="two"), "transit_weight"),
        (lambda: entrannas_dst(per_edge="none"), "per_edge"),
        (lambda: entrannas_dst(threshold=1.0), "threshold"),
        (lambda: entrannas_dst(threshold=math.nan), "threshold"),
        (lambda: entrannas_dst(max_connections=0), "max_connections"),
        (lambda: entrannas_dst(sparsity_weight=-1.0), "sparsity_weight"),
        (lambda: entrannas_dst().init(get_space("darts"), KEY), "space"),
        (lambda: entrannas_dst().init(get_space("nas_bench_201_nozero"), KEY), "space"),
    ],
)
def test_bad_arguments(make, argument: str) -> None:
    with pytest.raises(UsageError, match=f"^{argument}: "):
        make()
