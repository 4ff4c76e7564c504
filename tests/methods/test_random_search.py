import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.methods import random_search
from gaea_jax.nets import Mixture
from gaea_jax.spaces.darts import DARTS_NOZERO, DARTS_SPACE
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, Genotype

KEY = jax.random.key(0)


def test_there_is_no_architecture_to_move() -> None:
    method = random_search()
    arch = method.init(NAS_BENCH_201, KEY)
    assert arch == {}
    optimizer = method.optimizer(NAS_BENCH_201)
    updates, _ = optimizer.update({}, optimizer.init(arch), arch)
    assert updates == {} and method.regularizer(NAS_BENCH_201, arch, Mixture(arch)) == 0
    chex.assert_trees_all_close(method.weights(NAS_BENCH_201, arch), {"cell": jnp.full((6, 5), 0.2)})


@pytest.mark.parametrize("phase", ["weights", "joint"])
def test_paths_are_uniform_and_independent_of_each_other(phase: str) -> None:
    method = random_search()

    def path(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixture = method.mixture(NAS_BENCH_201, {}, {}, key, 0, phase)
        return mixture.weights["cell"], mixture.active["cell"]

    weights, active = jax.jit(jax.vmap(path))(jax.random.split(KEY, 4000))
    assert jnp.array_equal(weights, active.astype(jnp.float32))
    assert jnp.array_equal(active.sum(axis=-1), jnp.ones((4000, 6), int))
    # Six standard errors of a share of 4,000 draws: each option, and each pair of options on two edges.
    np.testing.assert_allclose(weights.mean(axis=0), 0.2, atol=6 * 0.4 / np.sqrt(4000))
    pairs = jnp.einsum("no,np->op", weights[:, 0], weights[:, 5]) / 4000
    np.testing.assert_allclose(pairs, 0.04, atol=6 * 0.2 / np.sqrt(4000))


def test_the_path_of_a_key_on_nas_bench_201_is_one_draw_of_options() -> None:
    drawn = random_search().mixture(NAS_BENCH_201, {}, {}, KEY, 0, "weights").active["cell"]
    expected = jax.random.randint(jax.random.split(KEY, 1)[0], (6,), 0, 5)
    assert jnp.array_equal(jnp.argmax(drawn, axis=-1), expected)


@pytest.mark.parametrize("space", [DARTS_SPACE, DARTS_NOZERO])
def test_paths_of_darts_are_genotypes_drawn_uniformly(space) -> None:
    draws = 20_000
    paths = jax.jit(jax.vmap(lambda key: random_search().mixture(space, {}, {}, key, 0, "weights").active))
    drawn = {cell: np.asarray(table)[..., -7:] for cell, table in paths(jax.random.split(KEY, draws)).items()}
    assert list(drawn) == ["normal", "reduce"]

    def close(counts: np.ndarray, count: float, share: float) -> None:
        # Six standard errors of a share of the draws.
        np.testing.assert_allclose(counts / count, share, atol=6 * np.sqrt(share * (1 - share) / count))

    first = 0
    for node in (2, 3, 4, 5):
        table = drawn["reduce"][:, first : first + node]
        first += node
        kept = table.any(axis=-1)
        assert (table.sum(axis=(1, 2)) == 2).all() and (kept.sum(axis=1) == 2).all()
        # Every pair of inputs, and for the first of all pairs every pair of operations.
        one, other = np.triu_indices(node, 1)
        together = (kept[:, one] & kept[:, other]).sum(axis=0)
        close(together, draws, 1 / len(one))
        pair = table[kept[:, 0] & kept[:, 1]]
        close(np.einsum("no,np->op", pair[:, 0], pair[:, 1], dtype=float), len(pair), 1 / 49)
    # The cells are independent of each other: so are their last kept inputs.
    last = np.stack([drawn[cell][:, 13].any(axis=-1) for cell in drawn])
    close(np.sum(last[0] & last[1]), draws, 0.4**2)


def test_derives_the_best_of_its_candidates() -> None:
    asked = []

    def evaluate(genotype: Genotype) -> float:
        asked.append(genotype)
        return float(genotype.cell.count("skip_connect"))

    method = random_search(candidates=30)
    best = method.derive(NAS_BENCH_201, {}, {}, KEY, evaluate)
    assert len(asked) == 30 and len(set(asked)) > 25
    assert evaluate(best) == max(map(evaluate, asked[:30])) > 1
    assert method.derive(NAS_BENCH_201, {}, {}, KEY, evaluate) == best
    assert method.derive(NAS_BENCH_201, {}, {}, jax.random.key(1), lambda genotype: 0.0) != asked[0]


def test_errors() -> None:
    with pytest.raises(UsageError, match="candidates: must be 1 or more, not 0"):
        random_search(candidates=0)
    with pytest.raises(UsageError, match="objective: random search derives by accuracy on held-out images"):
        random_search().derive(NAS_BENCH_201, {}, {}, KEY, None)
