"""Regularised evolution: mutation of tournament winners, and death of the oldest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax.benchmarks import Candidates
from gaea_jax.blackbox.base import NO_SCORE, Algorithm, Archive
from gaea_jax.errors import UsageError


class Population(NamedTuple):
    """A queue.

    Attributes:
      ids: int32 [size].
      scores: float32 [size].
      oldest: int32 scalar, the place of the oldest.
    """

    ids: jax.Array
    scores: jax.Array
    oldest: jax.Array


def evolution(population: int = 30, tournament: int = 10) -> Algorithm:
    """Regularised evolution; a child differs from its parent in one choice.

    A child that was evaluated before joins the population with its known score, and costs no query.

    Args:
      population: its size; as many candidates are drawn uniformly at first.
      tournament: how many of it are drawn, without repetition; the best of them is the parent.

    Returns:
      The `Algorithm`.

    Raises:
      UsageError: on ``tournament``, if it is not 1 to ``population``.

    References:
      Real et al, `Regularized Evolution for Image Classifier Architecture Search <https://arxiv.org/abs/1802.01548>`_,
      2019, algorithm 1.
    """
    if not 1 <= tournament <= population:
        raise UsageError("tournament", f"must be 1 to {population}, the size of the population, not {tournament}")

    def init(key: jax.Array, candidates: Candidates, archive: Archive) -> Population:
        return Population(archive.ids[:population], archive.scores[:population], jnp.int32(0))

    def propose(
        key: jax.Array, candidates: Candidates, archive: Archive, state: Population
    ) -> tuple[Population, jax.Array, jax.Array]:
        assert candidates.neighbours is not None
        drawing, moving = jax.random.split(key)
        drawn = jax.random.choice(drawing, population, (tournament,), replace=False)
        parent = state.ids[drawn[jnp.argmax(state.scores[drawn])]]
        moves = candidates.neighbours[parent]
        return state, jax.random.choice(moving, moves, (1,)), jnp.ones(1, bool)

    def observe(
        candidates: Candidates, archive: Archive, state: Population, ids: jax.Array, scores: jax.Array
    ) -> Population:
        born = scores[0] > NO_SCORE
        place = jnp.where(born, state.oldest, population)
        return Population(
            state.ids.at[place].set(ids[0], mode="drop"),
            state.scores.at[place].set(scores[0], mode="drop"),
            (state.oldest + born) % population,
        )

    return Algorithm(population, 1, init, propose, observe, needs_neighbours=True)
