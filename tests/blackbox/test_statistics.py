import numpy as np
import pytest
import scipy.stats

from gaea_jax.benchmarks import Benchmark
from gaea_jax.blackbox import statistics
from gaea_jax.errors import UsageError


def test_curves_follow_the_best_so_far(small: Benchmark) -> None:
    order = np.argsort(-small.scores)
    ids = order[np.array([[9, 4, 6, 0], [2, 3, 3, 1]])]
    curves = statistics.anytime(small, ids, small.scores[ids])
    assert curves.rank.tolist() == [[10, 5, 5, 1], [3, 3, 3, 2]]
    np.testing.assert_array_equal(curves.reported["valid"][0], small.scores[order[[9, 4, 4, 0]]])


def test_of_equal_scores_the_first_is_reported(small: Benchmark) -> None:
    """By what the search saw they are the same, and it would have kept the first."""
    equal = np.zeros((1, 3), np.float32)
    assert statistics.anytime(small, np.array([[5, 3, 8]]), equal).reported["valid"].tolist() == [[small.scores[5]] * 3]


def test_budgets_are_those_within_a_run_and_its_end(small: Benchmark) -> None:
    ids = np.stack([np.random.default_rng(seed).permutation(729)[:120] for seed in range(30)])
    curves = statistics.anytime(small, ids, small.scores[ids])
    records = statistics.at_budgets(curves)
    assert [record["queries"] for record in records] == [50, 100, 120]
    rank = records[0]["rank"]
    assert rank["mean"] == pytest.approx(curves.rank[:, 49].mean())
    assert rank["std"] == pytest.approx(curves.rank[:, 49].std())
    assert rank["low"] < rank["mean"] < rank["high"]
    error = curves.rank[:, 49].std() / np.sqrt(30)
    assert rank["high"] - rank["low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_the_spread_of_equal_values_is_nothing() -> None:
    assert statistics.spread(np.full(5, 3)) == {"mean": 3, "std": 0, "low": 3, "high": 3}
    assert statistics.spread(np.array([2])) == {"mean": 2, "std": 0, "low": 2, "high": 2}


def test_first_hits_count_from_one_and_know_of_trials_that_never_got_there() -> None:
    curves = statistics.Curves(np.array([[5, 1, 1], [30, 20, 10], [40, 40, 40]]), {})
    assert statistics.first_hits(curves) == [
        {"rank": 1, "share": pytest.approx(1 / 3), "median": None},
        {"rank": 10, "share": pytest.approx(2 / 3), "median": 3.0},
    ]


def test_the_test_is_wilcoxons_on_pairs_of_trials() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (statistics.Curves(rng.integers(1, high, (40, 60)), {}) for high in (30, 60))
    records = statistics.compare(ours, theirs)
    assert [record["queries"] for record in records] == [50, 60]
    difference = ours.rank[:, 49] - theirs.rank[:, 49]
    assert records[0]["difference"] == pytest.approx(difference.mean())
    assert records[0]["p"] == pytest.approx(scipy.stats.wilcoxon(difference, zero_method="zsplit").pvalue)
    assert records[0]["p"] < 0.01
    assert statistics.compare(ours, ours)[0] == {"queries": 50, "difference": 0.0, "p": 1.0}
    with pytest.raises(UsageError, match="against: has 40 trials, not 10"):
        statistics.compare(statistics.Curves(ours.rank[:10], {}), theirs)
