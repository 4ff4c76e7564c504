"""What trials found: anytime curves, budgets, first hits and tests, as plain numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from gaea_jax.benchmarks import Benchmark
from gaea_jax.errors import UsageError

BUDGETS = (50, 100, 150, 200, 300, 444, 500, 1000, 2000)
"""The numbers of queries at which results are given, as far as a run goes."""

HITS = (1, 10)
"""The ranks whose first hit is reported."""

_RESAMPLES = 2000


class Curves(NamedTuple):
    """The best candidate so far, by what the search sees; of equal ones the first.

    Attributes:
      rank: int [trials, budget], its rank in the table among all feasible candidates after each query.
      reported: [trials, budget] by name, what the benchmark reports of it, and, where that has a test accuracy, its
        rank by it as ``test_rank``.
    """

    rank: np.ndarray
    reported: dict[str, np.ndarray]

    def values(self, name: str) -> np.ndarray:
        """The curve of a name: ``rank`` or one that is reported."""
        return self.rank if name == "rank" else self.reported[name]


def anytime(benchmark: Benchmark, ids: np.ndarray, scores: np.ndarray) -> Curves:
    """The curves of trials.

    Args:
      benchmark: what was searched.
      ids: int [trials, budget], in the order of evaluation.
      scores: float32 [trials, budget], what the search saw of them.

    Returns:
      The `Curves`.
    """
    better = np.concatenate([np.ones((len(ids), 1), bool), scores[:, 1:] > np.maximum.accumulate(scores, 1)[:, :-1]], 1)
    place = np.maximum.accumulate(np.where(better, np.arange(ids.shape[1]), 0), axis=1)
    best = np.take_along_axis(ids, place, axis=1)
    reported = {name: values[best] for name, values in benchmark.reported.items()}
    if "test" in reported:
        reported["test_rank"] = benchmark.ranks("test")[best]
    return Curves(benchmark.ranks()[best], reported)


def at_budgets(curves: Curves) -> list[dict[str, Any]]:
    """The curves at `BUDGETS` and at the end.

    Args:
      curves: of the trials.

    Returns:
      For each number of ``queries`` a record with, for ``rank`` and each that is reported, ``mean``, population
      standard deviation ``std``, and ``low`` and ``high``, the 95 % bootstrap interval of the mean.
    """
    found = []
    for queries in _budgets(curves.rank.shape[1]):
        names = ("rank", *curves.reported)
        found.append({"queries": queries, **{name: spread(curves.values(name)[:, queries - 1]) for name in names}})
    return found


def _budgets(last: int) -> list[int]:
    return sorted({last, *(queries for queries in BUDGETS if queries <= last)})


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, population standard deviation, and the 95 % bootstrap interval of the mean, of one value a trial."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    low = high = mean
    if len(values) > 1 and np.ptp(values) > 0:
        interval = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"mean": mean, "std": float(values.std()), "low": low, "high": high}


def first_hits(curves: Curves) -> list[dict[str, Any]]:
    """How many queries it took to get to a rank.

    Args:
      curves: of the trials.

    Returns:
      For each of `HITS` a record: ``rank``, ``share`` of the trials that got there, and ``median`` of the queries over
      all trials, None unless more than half did.
    """
    records = []
    for rank in HITS:
        hit = curves.rank <= rank
        queries = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, np.inf)
        median = float(np.median(queries))
        share = float(np.isfinite(queries).mean())
        records.append({"rank": rank, "share": share, "median": median if np.isfinite(median) else None})
    return records


def compare(ours: Curves, theirs: Curves) -> list[dict[str, Any]]:
    """Wilcoxon's signed-rank test of the ranks, trials paired by their number.

    Args:
      ours: of one algorithm.
      theirs: of another, with as many trials.

    Returns:
      For each number of ``queries`` of `BUDGETS` that both have, and for the last, a record: ``difference``, the mean
      of our rank less theirs (below 0: ours is better), and ``p``, two-sided; 1 if all trials are equal.

    Raises:
      UsageError: on ``against``, if the numbers of trials differ.
    """
    if len(ours.rank) != len(theirs.rank):
        raise UsageError("against", f"has {len(theirs.rank)} trials, not {len(ours.rank)}")
    found = []
    for queries in _budgets(min(ours.rank.shape[1], theirs.rank.shape[1])):
        difference = ours.rank[:, queries - 1] - theirs.rank[:, queries - 1]
        p = float(scipy.stats.wilcoxon(difference, zero_method="zsplit").pvalue) if difference.any() else 1.0
        found.append({"queries": queries, "difference": float(difference.mean()), "p": p})
    return found


def curve_records(curves: Curves, points: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """The spread of each curve after some numbers of queries, for plots.

    Args:
      curves: of the trials.
      points: numbers of queries.

    Returns:
      For ``rank`` and each that is reported, `spread` at each point.
    """
    return {
        name: [spread(curves.values(name)[:, point - 1]) for point in points] for name in ("rank", *curves.reported)
    }
