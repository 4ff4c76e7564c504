"""Local search: the first neighbour that is better, and a restart where none is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax.benchmarks import Candidates
from gaea_jax.blackbox.base import Algorithm, Archive, unseen


class Place(NamedTuple):
    """Where the search is.

    Attributes:
      id: int32 scalar, the current candidate.
      score: float32 scalar, its score.
      key: decides the order of its neighbours.
      tried: int32 scalar, how many of them were tried.
    """

    id: jax.Array
    score: jax.Array
    key: jax.Array
    tried: jax.Array


def local_search(starts: int = 10) -> Algorithm:
    """Climbs from the best of some random candidates, and from a new random one at every local optimum.

    Neighbours differ in one choice and are tried in random order; one that was evaluated before costs no query.

    Args:
      starts: candidates that are drawn uniformly at first.

    Returns:
      The `Algorithm`.

    References:
      White et al, `Exploring the Loss Landscape in Neural Architecture Search <https://arxiv.org/abs/2005.02960>`_,
      2021. Ours moves to the first better neighbour; the paper's main variant tries all of them first.
    """

    def init(key: jax.Array, candidates: Candidates, archive: Archive) -> Place:
        ids, scores = archive.best(1)
        return Place(ids[0], scores[0], key, jnp.int32(0))

    def propose(
        key: jax.Array, candidates: Candidates, archive: Archive, state: Place
    ) -> tuple[Place, jax.Array, jax.Array]:
        assert candidates.neighbours is not None
        moves = candidates.neighbours.shape[-1]
        order = jax.random.permutation(state.key, moves)
        neighbour = candidates.neighbours[state.id, order[jnp.minimum(state.tried, moves - 1)]][None]
        ids = jax.lax.cond(state.tried < moves, lambda: neighbour, lambda: unseen(key, candidates, archive, 1))
        return state, ids, jnp.ones(1, bool)

    def observe(candidates: Candidates, archive: Archive, state: Place, ids: jax.Array, scores: jax.Array) -> Place:
        assert candidates.neighbours is not None
        moved = (scores[0] > state.score) | (state.tried >= candidates.neighbours.shape[-1])
        onward = Place(ids[0], scores[0], jax.random.fold_in(state.key, ids[0]), jnp.int32(0))
        stay = state._replace(tried=state.tried + 1)
        return jax.tree.map(lambda there, here: jnp.where(moved, there, here), onward, stay)

    return Algorithm(starts, 1, init, propose, observe, needs_neighbours=True)
