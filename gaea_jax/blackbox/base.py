"""What every black-box search is made of: an archive of what was evaluated, and an algorithm that proposes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax.benchmarks import Candidates

NO_SCORE = float(jnp.finfo(jnp.float32).min)
"""The score of what has none; finite, since a state that is not is taken for a diverged one."""


class Archive(NamedTuple):
    """What was evaluated, in its order: the queries of a trial.

    Attributes:
      ids: int32 [budget], -1 where nothing is yet.
      scores: float32 [budget], `NO_SCORE` there.
      queries: int32 scalar, how many so far.
      place: int32 [identities], the place of each in the archive, ``budget`` where it was not evaluated.
    """

    ids: jax.Array
    scores: jax.Array
    queries: jax.Array
    place: jax.Array

    def seen(self, candidates: Candidates, ids: jax.Array) -> jax.Array:
        """Which candidates were evaluated, or others of the same identity; bool of the shape of ``ids``."""
        return self.place[candidates.identity[ids]] < len(self.ids)

    def best(self, count: int) -> tuple[jax.Array, jax.Array]:
        """Ids and scores of the best, int32 and float32 [count]; of equal ones the earlier comes first."""
        scores, places = jax.lax.top_k(self.scores, count)
        return self.ids[places], scores


State = Any


class Algorithm(NamedTuple):
    """A record of pure functions. None sees a score but those of the archive and of its own proposals.

    Attributes:
      initial: candidates that are drawn uniformly and evaluated before the first proposal.
      batch: proposals a round.
      init: ``init(key, candidates, archive) -> state``, after the initial candidates.
      propose: ``propose(key, candidates, archive, state) -> (state, ids, valid)``: ids int32 [batch], and which of
        them are proposals. Those that were evaluated before, or are not feasible, cost nothing.
      observe: ``observe(candidates, archive, state, ids, scores) -> state``: the archive with what was evaluated;
        scores float32 [batch] are `NO_SCORE` for what has none, because it is not valid or not feasible.
      measures: ``measures(state) -> {name: scalar}``, for the reports.
      needs_neighbours: whether it moves between candidates that differ in one choice.
    """

    initial: int
    batch: int
    init: Callable[[jax.Array, Candidates, Archive], State]
    propose: Callable[[jax.Array, Candidates, Archive, State], tuple[State, jax.Array, jax.Array]]
    observe: Callable[[Candidates, Archive, State, jax.Array, jax.Array], State]
    measures: Callable[[State], dict[str, jax.Array]] = lambda state: {}
    needs_neighbours: bool = False


def unseen(key: jax.Array, candidates: Candidates, archive: Archive, count: int) -> jax.Array:
    """Feasible candidates that were not evaluated, drawn uniformly, no two of one identity.

    Args:
      key: of the draw.
      candidates: all.
      archive: what was evaluated.
      count: how many; there must be as many.

    Returns:
      int32 [count].
    """
    order = jax.random.uniform(key, (candidates.rows,))
    free = candidates.feasible & ~archive.seen(candidates, jnp.arange(candidates.rows))
    order = jnp.where(free, order, -1)
    first = jax.ops.segment_max(order, candidates.identity, num_segments=len(archive.place))
    _, ids = jax.lax.top_k(jnp.where(order == first[candidates.identity], order, -1), count)
    return ids
