"""One trial of a black-box search: rounds of proposals and queries, as pure functions of its state."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax.benchmarks import Candidates
from gaea_jax.blackbox.base import NO_SCORE, Algorithm, Archive, State, unseen
from gaea_jax.blackbox.evaluators import Evaluate

# Rounds of proposals without a query before a uniform candidate is evaluated in their place: evolution may propose
# what it knows for long, and must not do so for ever.
PATIENCE = 1000


class Trial(NamedTuple):
    """The state of a trial, a pytree.

    Attributes:
      key: of the whole trial.
      step: int32 scalar, how often it was taken on by `advance`.
      rounds: int32 scalar, rounds of proposals.
      archive: what was evaluated.
      state: the algorithm's.
    """

    key: jax.Array
    step: jax.Array
    rounds: jax.Array
    archive: Archive
    state: State


def begin(
    algorithm: Algorithm,
    candidates: Candidates,
    evaluate: Evaluate,
    budget: int,
    identities: int,
    key: jax.Array,
    start: Sequence[int] = (),
) -> Trial:
    """Evaluates the initial candidates.

    Args:
      algorithm: what searches.
      candidates: what is known for nothing.
      evaluate: ``evaluate(ids, wanted) -> scores``, the only way to a score.
      budget: most queries of the trial, at least the initial ones.
      identities: one more than the largest identity of a candidate.
      key: of the trial; the initial candidates depend on it and on their number only.
      start: ids of candidates to have among them, feasible, no two of one identity, and no more than they are.

    Returns:
      The state before the first round.
    """
    archive = Archive(
        jnp.full(budget, -1, jnp.int32),
        jnp.full(budget, NO_SCORE, jnp.float32),
        jnp.int32(0),
        jnp.full(identities, budget, jnp.int32),
    )
    drawing, starting, going = jax.random.split(key, 3)
    if start:
        archive, _ = _ask(candidates, evaluate, archive, jnp.asarray(start, jnp.int32), jnp.ones(len(start), bool))
    if drawn := algorithm.initial - len(start):
        ids = unseen(drawing, candidates, archive, drawn)
        archive, _ = _ask(candidates, evaluate, archive, ids, jnp.ones(drawn, bool))
    return Trial(going, jnp.int32(0), jnp.int32(0), archive, algorithm.init(starting, candidates, archive))


def advance(algorithm: Algorithm, candidates: Candidates, evaluate: Evaluate, trial: Trial, queries: int) -> Trial:
    """Rounds of proposals, until so many queries more were made or the budget is spent.

    A round that evaluates several may make a few more.

    Args:
      algorithm: what searches.
      candidates: what is known for nothing.
      evaluate: as for `begin`.
      trial: the state.
      queries: how many in each call, counted from the initial ones.

    Returns:
      The state after them.
    """
    until = jnp.minimum(algorithm.initial + (trial.step + 1) * queries, len(trial.archive.ids))

    def one(carry: tuple[Trial, jax.Array]) -> tuple[Trial, jax.Array]:
        trial, waited = carry
        key, drawing = jax.random.split(jax.random.fold_in(trial.key, trial.rounds))
        state, ids, valid = algorithm.propose(key, candidates, trial.archive, trial.state)
        lost = waited == PATIENCE
        ids = jax.lax.cond(
            lost, lambda: jnp.resize(unseen(drawing, candidates, trial.archive, 1), ids.shape), lambda: ids
        )
        archive, scores = _ask(candidates, evaluate, trial.archive, ids, valid | lost)
        state = algorithm.observe(candidates, archive, state, ids, scores)
        waited = jnp.where(archive.queries > trial.archive.queries, 0, waited + 1)
        return Trial(trial.key, trial.step, trial.rounds + 1, archive, state), waited

    trial, _ = jax.lax.while_loop(lambda carry: carry[0].archive.queries < until, one, (trial, jnp.int32(0)))
    return trial._replace(step=trial.step + 1)


def _ask(
    candidates: Candidates, evaluate: Evaluate, archive: Archive, ids: jax.Array, valid: jax.Array
) -> tuple[Archive, jax.Array]:
    """Evaluates what is valid, feasible and new, as far as the budget goes; and the scores of all that have one."""
    budget = len(archive.ids)
    identity = candidates.identity[ids]
    valid = valid & candidates.feasible[ids]
    earlier = (identity[:, None] == identity[None]) & valid[None] & jnp.tri(len(ids), k=-1, dtype=bool)
    new = valid & ~archive.seen(candidates, ids) & ~jnp.any(earlier, axis=1)
    places = archive.queries + jnp.cumsum(new) - 1
    new &= places < budget
    scores = evaluate(ids, new)
    at = jnp.where(new, places, budget)
    archive = Archive(
        archive.ids.at[at].set(ids, mode="drop"),
        archive.scores.at[at].set(scores, mode="drop"),
        archive.queries + jnp.sum(new, dtype=jnp.int32),
        archive.place.at[jnp.where(new, identity, len(archive.place))].set(at, mode="drop"),
    )
    place = jnp.where(valid, archive.place[identity], budget)
    return archive, jnp.where(place < budget, archive.scores[jnp.minimum(place, budget - 1)], NO_SCORE)
