from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.benchmarks import Benchmark, Candidates
from gaea_jax.benchmarks.base import edge_candidates
from gaea_jax.blackbox import Algorithm, Archive, Trial, advance, begin
from gaea_jax.blackbox.base import NO_SCORE, unseen
from gaea_jax.blackbox.evolution import evolution
from gaea_jax.blackbox.ga_nas import ga_nas
from gaea_jax.blackbox.local_search import local_search
from gaea_jax.blackbox.predictor import predictor_search
from gaea_jax.blackbox.random_search import random_search
from gaea_jax.blackbox.trial import PATIENCE

BUDGET = 40
ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "random": random_search,
    "evolution": lambda: evolution(population=8, tournament=4),
    "local_search": lambda: local_search(starts=4),
    "predictor": lambda: predictor_search(initial=10, batch=5, steps=20, width=8, uniform=10, parents=3),
    "ga_nas": lambda: ga_nas(
        initial=10, truth=4, batch=5, rounds=1, discriminator_steps=3, generator_updates=2, pool=64, width=8, layers=2
    ),
}


class Counter:
    """Scores by a call to the host, which notes what it was asked for."""

    def __init__(self, scores: np.ndarray):
        self.scores = scores
        self.asked: list[int] = []

    def __call__(self, ids: jax.Array, wanted: jax.Array) -> jax.Array:
        def look_up(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            self.asked += ids[wanted].tolist()
            return np.where(wanted, self.scores[ids], np.float32(np.nan))

        shape = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
        return jax.experimental.io_callback(look_up, shape, ids, wanted, ordered=True)


def searched(algorithm: Algorithm, benchmark: Benchmark, evaluate: Any, key: int = 0, budget: int = BUDGET) -> Trial:
    candidates = benchmark.candidates
    identities = int(candidates.identity.max()) + 1

    @jax.jit
    def whole(candidates: Candidates, key: jax.Array) -> Trial:
        trial = begin(algorithm, candidates, evaluate, budget, identities, key)
        return jax.lax.while_loop(
            lambda trial: trial.archive.queries < budget,
            lambda trial: advance(algorithm, candidates, evaluate, trial, 10),
            trial,
        )

    return jax.device_get(whole(candidates, jax.random.key(key)))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_is_evaluated_but_what_is_in_the_archive_once(name: str, small: Benchmark) -> None:
    counter = Counter(small.scores)
    archive = searched(ALGORITHMS[name](), small, counter).archive
    assert counter.asked == archive.ids.tolist()
    assert len(set(counter.asked)) == BUDGET == int(archive.queries)
    np.testing.assert_array_equal(archive.scores, small.scores[archive.ids])
    np.testing.assert_array_equal(archive.place[archive.ids], np.arange(BUDGET))
    assert (archive.place < BUDGET).sum() == BUDGET


@pytest.mark.parametrize("name", ALGORITHMS)
def test_cells_of_one_identity_are_evaluated_once(name: str, small: Benchmark) -> None:
    """Nine cells each count as one: those that differ in the last two edges alone."""
    grouped = Candidates(**{**vars(small.candidates), "identity": jnp.arange(729) // 9})
    archive = searched(ALGORITHMS[name](), small._replace(candidates=grouped), Counter(small.scores)).archive
    assert len(set((archive.ids // 9).tolist())) == BUDGET


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_not_feasible_is_never_evaluated(name: str, small: Benchmark) -> None:
    limited = Candidates(**{**vars(small.candidates), "feasible": jnp.arange(729) % 3 != 1})
    counter = Counter(small.scores)
    searched(ALGORITHMS[name](), small._replace(candidates=limited), counter)
    assert len(counter.asked) == BUDGET
    assert all(asked % 3 != 1 for asked in counter.asked)


@pytest.mark.parametrize("name", ["evolution", "local_search", "predictor"])
def test_what_has_scores_to_go_by_beats_chance(name: str, small: Benchmark) -> None:
    look_up = lambda ids, wanted: jnp.asarray(small.scores)[ids]  # noqa: E731
    ranks = small.ranks()
    best = [ranks[searched(ALGORITHMS[name](), small, look_up, key).archive.ids].min() for key in range(5)]
    assert np.median(best) < (729 + 1) / (BUDGET + 1)


def test_the_initial_candidates_depend_on_key_and_number_alone(small: Benchmark) -> None:
    """So that trials of two algorithms are pairs."""
    one, other = (searched(ALGORITHMS[name](), small, Counter(small.scores)) for name in ("predictor", "ga_nas"))
    np.testing.assert_array_equal(one.archive.ids[:10], other.archive.ids[:10])


def test_an_algorithm_that_proposes_what_it_knows_does_not_hang(small: Benchmark) -> None:
    def stuck(key: jax.Array, candidates: Candidates, archive: Archive, state: Any) -> tuple[Any, jax.Array, jax.Array]:
        return state, archive.ids[:1], jnp.ones(1, bool)

    algorithm = Algorithm(2, 1, lambda *given: (), stuck, lambda *given: ())
    trial = searched(algorithm, small, Counter(small.scores), budget=4)
    assert len(set(trial.archive.ids.tolist())) == 4
    assert int(trial.rounds) == 2 * (PATIENCE + 1)


def test_a_batch_is_cut_at_the_budget_and_has_no_candidate_twice(small: Benchmark) -> None:
    def propose(
        key: jax.Array, candidates: Candidates, archive: Archive, state: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        return state, jnp.array([7, 7, 8, 9, 10]), jnp.array([True, True, True, False, True])

    def observe(candidates: Candidates, archive: Archive, state: Any, ids: jax.Array, scores: jax.Array) -> Any:
        return scores

    algorithm = Algorithm(1, 5, lambda *given: jnp.zeros(5), propose, observe)
    counter = Counter(small.scores)
    trial = searched(algorithm, small, counter, budget=3)
    assert counter.asked[1:] == [7, 8]
    expected = [small.scores[7], small.scores[7], small.scores[8], NO_SCORE, NO_SCORE]
    np.testing.assert_array_equal(trial.state, np.array(expected, np.float32))


def test_uniform_candidates_are_new_and_feasible_and_differ(small: Benchmark) -> None:
    feasible = jnp.arange(729) < 30
    candidates = Candidates(**{**vars(small.candidates), "feasible": feasible, "identity": jnp.arange(729) // 2})
    place = jnp.full(365, 5).at[jnp.array([0, 3])].set(0)
    archive = Archive(jnp.full(5, -1), jnp.full(5, NO_SCORE), jnp.int32(0), place)
    draw = jax.jit(lambda key: unseen(key, candidates, archive, 13))
    for key in range(5):
        ids = draw(jax.random.key(key))
        assert sorted((ids // 2).tolist()) == [1, 2, *range(4, 15)]


def test_uniform_candidates_are_uniform(small: Benchmark) -> None:
    archive = Archive(jnp.full(5, -1), jnp.full(5, NO_SCORE), jnp.int32(0), jnp.full(3, 5))
    digits = np.zeros((3, 6), int)
    candidates = edge_candidates(small.candidates.grammar, digits)
    draw = jax.jit(jax.vmap(lambda key: unseen(key, candidates, archive, 1)[0]))
    counts = np.bincount(draw(jax.random.split(jax.random.key(0), 3_000)), minlength=3)
    assert (abs(counts - 1_000) < 120).all()


def test_the_oldest_of_a_population_dies_and_what_has_no_score_is_not_born(small: Benchmark) -> None:
    algorithm = evolution(population=3, tournament=2)
    archive = Archive(jnp.array([4, 5, 6]), jnp.array([1.0, 2.0, 3.0]), jnp.int32(3), jnp.full(729, 3))
    state = algorithm.init(jax.random.key(0), small.candidates, archive)
    state = algorithm.observe(small.candidates, archive, state, jnp.array([9]), jnp.array([8.0]))
    assert state.ids.tolist() == [9, 5, 6]
    state = algorithm.observe(small.candidates, archive, state, jnp.array([10]), jnp.array([NO_SCORE]))
    assert state.ids.tolist() == [9, 5, 6]
    state = algorithm.observe(small.candidates, archive, state, jnp.array([11]), jnp.array([0.5]))
    assert (state.ids.tolist(), state.scores.tolist()) == ([9, 11, 6], [8.0, 0.5, 3.0])
    parents = {int(algorithm.propose(jax.random.key(k), small.candidates, archive, state)[1][0]) for k in range(40)}
    near = {int(i) for parent in (9, 6) for i in small.candidates.neighbours[parent]}
    assert parents <= near


def test_local_search_stays_until_a_neighbour_is_better_and_restarts_at_an_optimum(small: Benchmark) -> None:
    algorithm = local_search()
    archive = Archive(jnp.array([4, 5]), jnp.array([1.0, 2.0]), jnp.int32(2), jnp.full(729, 2))
    state = algorithm.init(jax.random.key(0), small.candidates, archive)
    assert (int(state.id), float(state.score)) == (5, 2.0)
    tried = []
    for _ in range(12):
        _, ids, _ = algorithm.propose(jax.random.key(1), small.candidates, archive, state)
        tried.append(int(ids[0]))
        state = algorithm.observe(small.candidates, archive, state, ids, jnp.array([1.5]))
        assert int(state.id) == 5
    assert sorted(tried) == sorted(small.candidates.neighbours[5].tolist())
    _, ids, _ = algorithm.propose(jax.random.key(2), small.candidates, archive, state)
    restarted = algorithm.observe(small.candidates, archive, state, ids, jnp.array([0.5]))
    assert (int(restarted.id), float(restarted.score), int(restarted.tried)) == (int(ids[0]), 0.5, 0)
    better = algorithm.observe(small.candidates, archive, restarted, jnp.array([8]), jnp.array([0.6]))
    assert (int(better.id), int(better.tried)) == (8, 0)
