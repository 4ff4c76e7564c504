"""What a black-box search sees of a benchmark: candidates as rows of device arrays, and a score for each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.errors import UsageError
from gaea_jax.spaces.grammar import CellGraph, Grammar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """What may be known of the candidates of a benchmark for nothing. A candidate's id is its row.

    Attributes:
      graphs: labels int32 [rows, nodes] and adjacency bool [rows, nodes, nodes], or [1, nodes, nodes] for all.
      identity: int32 [rows]; candidates with one number are one query, such as cells that compute the same.
      feasible: bool [rows]; what is not feasible is never evaluated.
      neighbours: int32 [rows, moves], the candidates that differ in one choice; None if the table has not all of them.
      index: ``index(graph) -> id``, int32, -1 for a cell that is not in the table; a pytree, usable inside jit.
      grammar: how cells are written.
    """

    graphs: CellGraph
    identity: jax.Array
    feasible: jax.Array
    neighbours: jax.Array | None
    index: Callable[[CellGraph], jax.Array]
    grammar: Grammar = dataclasses.field(metadata={"static": True})

    @property
    def rows(self) -> int:
        """Number of candidates."""
        return len(self.identity)

    def graph(self, ids: jax.Array) -> CellGraph:
        """The cells of candidates, with the axes of ``ids`` in front."""
        adjacency = self.graphs.adjacency
        return CellGraph(self.graphs.labels[ids], adjacency[ids if len(adjacency) > 1 else jnp.zeros_like(ids)])


class Benchmark(NamedTuple):
    """A benchmark and the signal that a search maximises.

    Attributes:
      space: name of the space.
      candidates: what is known for nothing.
      scores: float32 [rows], the signal.
      reported: float32 [rows] by name: what a result tells of a candidate besides, such as its test accuracy.
      costs: float32 [rows] by name, for constraints.
      text: ``text(id)``: the genotype as text.
      row: ``row(text)``, its inverse: the id of a genotype; UsageError on ``genotype``, if the text is none or the
        table lacks it.
    """

    space: str
    candidates: Candidates
    scores: np.ndarray
    reported: Mapping[str, np.ndarray]
    costs: Mapping[str, np.ndarray]
    text: Callable[[int], str]
    row: Callable[[str], int]

    def ranks(self, by: str | None = None) -> np.ndarray:
        """One more than the number of feasible candidates with a higher score, int [rows].

        Args:
          by: which of `reported` is the score; by default that which a search sees.

        Returns:
          1 for the best; of what is not feasible the rank that it would have.
        """
        scores = self.scores if by is None else self.reported[by]
        feasible = np.sort(scores[np.asarray(self.candidates.feasible)])
        return 1 + len(feasible) - np.searchsorted(feasible, scores, side="right")

    def limited(self, cost: str, at_most: float) -> Self:
        """The benchmark under a constraint: what costs more is not feasible.

        Args:
          cost: which of `costs`.
          at_most: the most that is allowed.

        Returns:
          The same benchmark with fewer feasible candidates.

        Raises:
          UsageError: on ``cost``, if it is unknown; on ``at_most``, if nothing is as cheap.
        """
        within = np.asarray(self.candidates.feasible) & (self.cost(cost) <= at_most)
        if not within.any():
            raise UsageError("at_most", f"nothing costs {at_most:g} or less; the least is {self.cost(cost).min():g}")
        return self._replace(candidates=dataclasses.replace(self.candidates, feasible=jnp.asarray(within)))

    def weighed(self, cost: str, target: float, exponent: float = -0.07) -> Self:
        """The benchmark with several objectives in one: score · (cost / target) ^ exponent.

        Args:
          cost: which of `costs`.
          target: the cost that leaves a score as it is, above 0.
          exponent: below 0 so that less is better; EfficientNet's.

        Returns:
          The same benchmark with other scores.

        Raises:
          UsageError: on ``cost``, if it is unknown or not above 0 everywhere; on ``target``, if it is not above 0.
        """
        if not 0 < target < np.inf:
            raise UsageError("target", f"must be a number of more than 0, not {target:g}")
        costs = self.cost(cost)
        if not (costs > 0).all():
            raise UsageError("cost", f"{cost} is 0 for some candidates, which a power of it cannot weigh")
        return self._replace(scores=(self.scores * (costs / target) ** exponent).astype(np.float32))

    def cost(self, cost: str) -> np.ndarray:
        """What every candidate costs, float32 [rows]; UsageError on ``cost``, if it is unknown."""
        if cost not in self.costs:
            raise UsageError("cost", f"{cost!r} is unknown; known are {', '.join(self.costs) or 'none'}")
        return self.costs[cost]


def edge_candidates(grammar: Grammar, digits: np.ndarray, identity: np.ndarray | None = None) -> Candidates:
    """All cells of a space of the NAS-Bench-201 family.

    Args:
      grammar: of `operations_on_edges`.
      digits: int [rows, edges], the operation of each edge; row number = the digits as one number, first edge first.
      identity: int [rows], as in `Candidates`; by default every cell is a query of its own.

    Returns:
      The candidates, all feasible.
    """
    rows, edges = digits.shape
    options = len(grammar.labels) - 3
    powers = options ** np.arange(edges - 1, -1, -1)
    others = (digits[:, :, None] + np.arange(1, options)) % options
    neighbours = np.arange(rows)[:, None, None] + (others - digits[:, :, None]) * powers[:, None]
    start = grammar.start()
    labels = jnp.tile(start.labels, (rows, 1)).at[:, 1 : 1 + edges].set(jnp.asarray(digits, jnp.int32) + 2)
    return Candidates(
        CellGraph(labels, start.adjacency[None]),
        jnp.asarray(np.arange(rows) if identity is None else identity, jnp.int32),
        jnp.ones(rows, bool),
        jnp.asarray(neighbours.reshape(rows, -1), jnp.int32),
        jax.tree_util.Partial(_by_digits, jnp.asarray(powers, jnp.int32)),
        grammar,
    )


def _by_digits(powers: jax.Array, graph: CellGraph) -> jax.Array:
    return jnp.sum((graph.labels[..., 1 : 1 + len(powers)] - 2) * powers, axis=-1, dtype=jnp.int32)
