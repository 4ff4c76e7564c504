import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.benchmarks import Benchmark, Signal, load_benchmark
from gaea_jax.blackbox import BlackboxConfig, blackbox
from gaea_jax.blackbox.evaluators import from_supernet, from_table
from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture
from gaea_jax.spaces import get_space
from gaea_jax.train import SearchConfig, restore_search, search
from gaea_jax.train.evaluate import supernet_accuracy

SPACE = "nas_bench_201_nozero"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A search of three steps that holds images out."""
    out = tmp_path_factory.mktemp("search") / "run"
    small = {"channels": 2, "cells": 1, "batch_size": 32, "steps": 3, "report_every": 3, "eval_images": 32}
    search(SearchConfig(space=SPACE, objective="bilevel", out=out, **small), devices=jax.local_devices()[:1])
    return out


@pytest.fixture
def benchmark_201(table_path: pathlib.Path) -> Benchmark:
    return load_benchmark(SPACE, table_path, Signal(identity="cell"))


def test_the_table_is_read(benchmark_201: Benchmark) -> None:
    ids = jnp.array([5, 0, 4_095])
    np.testing.assert_array_equal(from_table(benchmark_201)(ids, jnp.ones(3, bool)), benchmark_201.scores[ids])


def test_a_cell_scores_what_it_has_right_with_the_shared_weights(run: pathlib.Path, benchmark_201: Benchmark) -> None:
    evaluate = from_supernet(benchmark_201, run, 64)
    ids = jnp.array([7, 4_000, 100])
    found = jax.jit(lambda evaluate, ids, wanted: evaluate(ids, wanted))(evaluate, ids, jnp.array([True, True, False]))
    ready, state = restore_search(run)
    assert int(state.step) == 3
    accuracy = supernet_accuracy(ready.net, ready.held_out(64), "batch")
    space = get_space(SPACE)
    for row, score in zip(ids[:2].tolist(), found[:2].tolist(), strict=True):
        mixture = Mixture.derived(space.encode(space.parse(benchmark_201.text(row))))
        assert score == pytest.approx(accuracy(state, mixture), abs=1e-4)
    assert float(found[2]) == 0


def test_a_search_by_shared_weights_is_ranked_by_the_table(run: pathlib.Path, table_path: pathlib.Path) -> None:
    config = BlackboxConfig(
        space=SPACE, table=table_path, supernet=run, algorithm="random", budget=6, trials=1, eval_images=32
    )
    result = blackbox(config)
    assert not np.array_equal(result.scores, result.benchmark.scores[result.ids])
    assert ((result.scores >= 0) & (result.scores <= 100)).all()
    best = result.ids[0, result.scores[0].argmax()]
    assert result.records[-1]["rank"] == result.benchmark.ranks()[best]


def test_what_cannot_score_is_refused(run: pathlib.Path, benchmark_201: Benchmark, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"supernet: .* cannot be used: there is no search in"):
        from_supernet(benchmark_201, tmp_path, 32)
    with pytest.raises(UsageError, match=r"supernet: .* has searched nas_bench_201_nozero, not nas_bench_201"):
        from_supernet(benchmark_201._replace(space="nas_bench_201"), run, 32)
    config = SearchConfig(space=SPACE, channels=2, cells=1, batch_size=32, steps=1, out=tmp_path / "run")
    search(config, devices=jax.local_devices()[:1])
    with pytest.raises(UsageError, match=r"supernet: .* held no images out: its objective is single-level"):
        from_supernet(benchmark_201, tmp_path / "run", 32)
