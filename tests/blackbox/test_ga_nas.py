import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.benchmarks import Benchmark, Candidates
from gaea_jax.blackbox.base import NO_SCORE, Archive
from gaea_jax.blackbox.ga_nas import _chosen, ga_nas
from gaea_jax.errors import UsageError


def archived(ids: list[int], scores: list[float], budget: int = 10) -> Archive:
    place = jnp.full(729, budget).at[jnp.array(ids)].set(jnp.arange(len(ids)))
    pad = budget - len(ids)
    return Archive(jnp.array(ids + [-1] * pad), jnp.array(scores + [NO_SCORE] * pad), jnp.int32(len(ids)), place)


def test_the_true_cells_are_the_best_of_the_whole_archive_and_the_earlier_of_equals() -> None:
    ids, scores = archived([5, 3, 9, 1, 2], [1.0, 4.0, 2.0, 4.0, 3.0]).best(4)
    assert (ids.tolist(), scores.tolist()) == ([3, 1, 2, 9], [4.0, 4.0, 3.0, 2.0])
    assert archived([5], [1.0]).best(1)[0].tolist() == [5]
    drawn = np.random.default_rng(0).normal(size=30)
    last = [archived([*range(count)], drawn[:count].tolist(), 40).best(4)[1][-1] for count in range(4, 31)]
    assert (np.diff(last) >= 0).all()


def chosen(candidates: Candidates, archive: Archive, pool: list[int], order: list[int], batch: int) -> tuple:
    ids, valid, found = _chosen(jax.random.key(0), candidates, archive, jnp.array(pool), jnp.array(order), batch)
    return ids, valid, {name: float(value) for name, value in found.items()}


def test_of_a_pool_come_the_first_that_are_new(small: Benchmark) -> None:
    archive = archived([5, 7], [1.0, 2.0])
    ids, valid, found = chosen(small.candidates, archive, [7, 20, -1, 20, 30, 5, 40, 50], list(range(8)), 3)
    assert ids.tolist() == [20, 30, 40]
    assert valid.all()
    assert found == {"distinct": 6, "known": 0.25, "draws": 7, "filled": 0}


def test_the_order_of_a_pool_may_be_another(small: Benchmark) -> None:
    ids, _, found = chosen(small.candidates, archived([5], [1.0]), [10, 20, 30, 40], [3, 2, 1, 0], 2)
    assert ids.tolist() == [40, 30]
    assert found["draws"] == 2


def test_half_of_a_batch_is_uniform_where_a_pool_has_nothing_new(small: Benchmark) -> None:
    archive = archived([5, 7], [1.0, 2.0])
    ids, valid, found = chosen(small.candidates, archive, [5, 7, 9, 5], [0, 1, 2, 3], 4)
    assert valid.tolist() == [True, True, False, False]
    assert ids[0] == 9
    assert len({5, 7, *ids[:2].tolist()}) == 4
    assert found == {"distinct": 3, "known": 0.75, "draws": 4, "filled": 1}


def test_a_batch_of_one_is_filled_too(small: Benchmark) -> None:
    ids, valid, found = chosen(small.candidates, archived([5, 7], [1.0, 2.0]), [5, 7, -1, 5], [0, 1, 2, 3], 1)
    assert valid.all()
    assert ids[0] not in (5, 7)
    assert found == {"distinct": 2, "known": 0.75, "draws": 4, "filled": 1}


def test_what_is_not_feasible_is_left_out_of_a_pool(small: Benchmark) -> None:
    candidates = Candidates(**{**vars(small.candidates), "feasible": jnp.arange(729) != 20})
    ids, _, _ = chosen(candidates, archived([5], [1.0]), [20, 21, 22, 23], [0, 1, 2, 3], 2)
    assert ids.tolist() == [21, 22]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"truth": 30}, "truth: must be 2 to 20"),
        ({"truth": 1}, "truth: must be 2 to 20"),
        ({"pool": 1023}, "pool: must be a multiple of the 4 temperatures"),
        ({"pool": 4}, "batch: must be at most the 4 cells of the pool"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ga_nas(**options)


def test_the_generator_never_sees_a_score(small: Benchmark) -> None:
    """Scores that keep their order give the same proposals, bit for bit."""
    networks = {"width": 8, "layers": 1, "discriminator_steps": 2, "generator_updates": 1}
    algorithm = ga_nas(initial=6, truth=3, batch=4, rounds=1, pool=16, **networks)
    propose = jax.jit(algorithm.propose)
    outcomes = []
    for scores in ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [-9.0, 2.0, 2.5, 40.0, 41.0, 1000.0]):
        archive = archived([5, 80, 160, 240, 320, 400], scores)
        state = algorithm.init(jax.random.key(0), small.candidates, archive)
        outcomes.append(propose(jax.random.key(1), small.candidates, archive, state))
    for one, other in zip(*map(jax.tree.leaves, outcomes), strict=True):
        np.testing.assert_array_equal(one, other)
