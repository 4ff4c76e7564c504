"""Random search: uniform, without repetition."""

from typing import Any

import jax
import jax.numpy as jnp

from gaea_jax.benchmarks import Candidates
from gaea_jax.blackbox.base import Algorithm, Archive, unseen


def random_search() -> Algorithm:
    """Evaluates feasible candidates that are drawn uniformly from those that it has not evaluated.

    Returns:
      The `Algorithm`; it has no state.
    """

    def propose(
        key: jax.Array, candidates: Candidates, archive: Archive, state: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        return state, unseen(key, candidates, archive, 1), jnp.ones(1, bool)

    return Algorithm(1, 1, lambda key, candidates, archive: (), propose, lambda *found: ())
