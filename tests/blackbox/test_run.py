import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from gaea_jax.blackbox import BlackboxConfig, blackbox
from gaea_jax.errors import UsageError
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201
from gaea_jax.train.drive import Interrupted

SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


@pytest.fixture
def config(table_path: pathlib.Path) -> Callable[..., BlackboxConfig]:
    def make(**fields: Any) -> BlackboxConfig:
        small = {"algorithm": "evolution", "trials": 2, "budget": 60, "population": 20, "tournament": 5}
        return BlackboxConfig(**{"table": table_path, **small, **fields})

    return make


def same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.rounds, other.rounds)


def test_a_run_writes_its_archives_and_reports(config: Callable[..., BlackboxConfig], tmp_path: pathlib.Path) -> None:
    seen: list[dict[str, Any]] = []
    result = blackbox(config(out=tmp_path / "run", report_every=20), on_report=seen.append)
    assert result.ids.shape == result.scores.shape == (2, 60)
    np.testing.assert_array_equal(result.scores, result.benchmark.scores[result.ids])
    assert [record["queries"] for record in seen] == [40, 60]
    assert seen[-1]["best"] == pytest.approx(result.scores.max(axis=1).mean(), rel=1e-6)
    assert seen == result.records
    with np.load(tmp_path / "run" / "archives.npz") as arrays:
        np.testing.assert_array_equal(arrays["ids"], result.ids)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == seen


def test_a_trial_depends_on_its_seed_and_number_alone(config: Callable[..., BlackboxConfig]) -> None:
    devices = jax.local_devices()
    four = blackbox(config(trials=4), devices=devices[:4])
    two = blackbox(config(trials=2), devices=devices[:1])
    np.testing.assert_array_equal(four.ids[:2], two.ids)
    assert len({tuple(row) for row in four.ids.tolist()}) == 4
    other = blackbox(config(seed=1), devices=devices[:1])
    assert not np.array_equal(other.ids, two.ids)


NETWORKS = {"algorithm": "ga_nas", "population": None, "tournament": None, "rounds": 1, "budget": 40, "truth": 4}


@pytest.mark.parametrize("fields", [{}, NETWORKS], ids=["evolution", "ga_nas"])
def test_a_run_that_was_cut_goes_on_bitwise(
    config: Callable[..., BlackboxConfig], tmp_path: pathlib.Path, fields: dict[str, Any]
) -> None:
    whole = blackbox(config(**fields))

    def stop(record: dict[str, Any]) -> None:
        raise Interrupted(record["step"], 15)

    cut = config(**fields, out=tmp_path / "run", report_every=10)
    with pytest.raises(Interrupted):
        blackbox(cut, on_report=stop)
    result = blackbox(dataclasses.replace(cut, resume=True))
    same(result, whole)
    assert [record["queries"] for record in result.records] == list(
        range(30, int(whole.records[-1]["queries"]) + 1, 10)
    )


def test_another_table_is_another_run(
    config: Callable[..., BlackboxConfig], arrays: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    blackbox(config(out=tmp_path / "run"))
    other = tmp_path / "other.npz"
    np.savez(other, **{**arrays, "c10_valid_200": arrays["c10_valid_200"] + 1})
    with pytest.raises(UsageError, match=r"resume: .* of another configuration: --table was"):
        blackbox(config(out=tmp_path / "run", table=other, resume=True))


def test_a_limit_and_a_target_change_what_is_searched(
    config: Callable[..., BlackboxConfig], arrays: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "costs.npz"
    convolutions = (arrays["ops"] == 3).sum(axis=1).astype(np.float32)
    np.savez(path, **arrays, params_m=1 + convolutions)
    limited = blackbox(config(table=path, cost="params_m", at_most=2.0))
    assert (convolutions[limited.ids] <= 1).all()
    cheapest = blackbox(config(table=path, cost="params_m", percentile=0.0))
    assert (convolutions[cheapest.ids] == 0).all()
    weighed = blackbox(config(table=path, cost="params_m", target=2.0))
    assert weighed.scores[0, 0] != limited.benchmark.scores[weighed.ids[0, 0]]


def test_every_trial_begins_with_the_given_cells(config: Callable[..., BlackboxConfig], tmp_path: pathlib.Path) -> None:
    cells = [NAS_BENCH_201.random(np.random.default_rng(seed)) for seed in range(3)]
    (tmp_path / "start.txt").write_text("\n".join(map(str, cells)) + "\n")
    result = blackbox(config(start=tmp_path / "start.txt"))
    expected = [int(NAS_BENCH_201.index(NAS_BENCH_201.encode(cell))) for cell in cells]
    assert result.ids[:, :3].tolist() == [expected] * 2
    assert len(set(result.ids[0].tolist())) == 60
    assert result.ids[0, 3] != result.ids[1, 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nonsense\n", "start: .*start.txt: genotype: "),
        ("\n", "has 0 cells; wants 1 to 20"),
        (f"{SKIPS}\n{SKIPS}\n", "no two of which count as one"),
    ],
)
def test_a_wrong_start_is_refused(
    config: Callable[..., BlackboxConfig], tmp_path: pathlib.Path, text: str, sentence: str
) -> None:
    (tmp_path / "start.txt").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        blackbox(config(start=tmp_path / "start.txt", out=tmp_path / "run"))
    with pytest.raises(UsageError, match="start: cannot read nowhere"):
        blackbox(config(start=pathlib.Path("nowhere")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"table": None}, "table: is needed"),
        ({"table": pathlib.Path("nowhere.npz")}, "table: cannot read nowhere.npz"),
        ({"algorithm": "annealing"}, "algorithm: 'annealing' is unknown; known are random, evolution"),
        ({"algorithm": "random"}, "population: is not an option of random"),
        ({"truth": 5}, "truth: is not an option of evolution"),
        ({"budget": 10}, "budget: must be 20 .* not 10"),
        ({"budget": 20_000}, "budget: must be .* to 15,624, not 20000"),
        ({"budget": 20_000, "identity": "class"}, "budget: must be .* to 6,465, not 20000"),
        ({"identity": "text"}, "identity: 'text' is not known here; known are class, cell"),
        ({"table_epochs": 90}, "table_epochs: 90 is not in the table, which has 200, 12"),
        ({**NETWORKS, "rounds": 0}, "rounds: must be more than 0"),
        ({**NETWORKS, "batch": 2000}, "batch: must be at most the 1024 cells of the pool"),
        ({**NETWORKS, "algorithm": "predictor", "rounds": None, "truth": None, "batch": 150}, "batch: must be at most"),
        ({"seed": 2**70}, "seed: must be 0 to"),
        ({"cost": "x", "target": 3.0, "supernet": pathlib.Path("run")}, "target: weighs the scores of the table"),
        ({"budget": 0}, "budget: must be more than 0"),
        ({"trials": 0}, "trials: must be more than 0"),
        ({"tournament": 21}, "tournament: must be 1 to 20"),
        ({"space": "darts"}, "space: 'darts' has no benchmark"),
        ({"dataset": "svhn"}, "dataset: 'svhn' is not in the table"),
        ({"cost": "params_m"}, "cost: is needed with a limit or a target, and one of these with it"),
        ({"at_most": 3.0}, "cost: is needed with a limit"),
        ({"cost": "params_m", "at_most": 3.0}, "cost: 'params_m' is unknown; known are none"),
        ({"cost": "x", "at_most": 3.0, "target": 3.0}, "target: cannot be given together with at most"),
        ({"cost": "x", "percentile": 101.0}, "percentile: must be 0 to 100"),
        ({"resume": True}, "resume: needs the folder"),
    ],
)
def test_what_cannot_run_is_refused(
    config: Callable[..., BlackboxConfig], fields: dict[str, Any], sentence: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        blackbox(config(**fields))


def test_an_algorithm_that_needs_neighbours_is_refused_a_sample(tmp_path: pathlib.Path) -> None:
    adjacency = np.zeros((1, 7, 7), np.uint8)
    adjacency[0, 0, 1] = 1
    sample = {
        "num_vertices": np.array([2], np.uint8),
        "adjacency": adjacency,
        "ops": np.full((1, 5), 255, np.uint8),
        "epochs": np.array([108]),
        "valid_acc": np.full((1, 1), 0.5, np.float32),
        "params": np.ones(1, np.int32),
    }
    np.savez(tmp_path / "sample.npz", **sample)
    config = BlackboxConfig(space="nas_bench_101", table=tmp_path / "sample.npz")
    for algorithm in ("evolution", "local_search", "predictor"):
        with pytest.raises(UsageError, match=f"algorithm: {algorithm} moves between neighbours, which this"):
            blackbox(dataclasses.replace(config, algorithm=algorithm))


@pytest.fixture
def polished() -> Iterator[None]:
    """Long runs are worth their optimisations."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.data
def test_searches_of_the_measured_table_are_as_good_as_known(shared_data: pathlib.Path, polished: None) -> None:
    """Mean rank after 100 and 150 queries, with room for few trials: random 145 and 99, evolution 11.9 and 7.2."""
    table = shared_data / "nas_bench_201" / "nb201.npz"
    ranks = {}
    for algorithm in ("random", "evolution", "local_search", "ga_nas"):
        result = blackbox(BlackboxConfig(table=table, algorithm=algorithm, budget=150, trials=6, identity="cell"))
        places = result.benchmark.ranks()[result.ids]
        ranks[algorithm] = [float(places[:, :queries].min(axis=1).mean()) for queries in (100, 150)]
    assert 40 < ranks["random"][0] < 350
    assert ranks["evolution"][1] < 40
    assert ranks["local_search"][1] < 20
    assert ranks["ga_nas"][1] < 20
