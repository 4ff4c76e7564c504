"""The script of black-box search: what it writes and prints, and what it compares."""

import json
import pathlib

import numpy as np
import pytest

from experiments.blackbox import archive
from gaea_jax.blackbox import ALGORITHMS, BlackboxConfig
from tests.experiments.test_scripts import call

COMMON = "--trials 3 --budget 60 --report-every 30"


@pytest.fixture
def runs(table_path: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> tuple[pathlib.Path, str]:
    """A folder with a run of evolution, and one of local search that is compared with it, and what that one printed."""
    first = f"blackbox --table {table_path} {COMMON} --algorithm evolution --out {tmp_path}/evolution"
    assert call(first) == 0
    capsys.readouterr()
    second = f"{COMMON} --algorithm local_search --out {tmp_path}/local --against {tmp_path}/evolution"
    assert call(f"blackbox --table {table_path} {second}") == 0
    return tmp_path, capsys.readouterr().out


def test_a_run_is_summed_up_and_compared(runs: tuple[pathlib.Path, str]) -> None:
    folder, out = runs
    result = json.loads((folder / "local" / "result.json").read_text())
    assert (result["algorithm"], result["trials"], result["budget"]) == ("local_search", 3, 60)
    assert [record["queries"] for record in result["budgets"]] == [50, 60]
    assert {"rank", "valid", "test", "test_rank"} <= result["budgets"][0].keys()
    assert (result["table_epochs"], result["target"]) == (None, None)
    assert result["options"] == {"starts": 10}
    assert [hit["rank"] for hit in result["hits"]] == [1, 10]
    assert [record["queries"] for record in result["against"]["evolution"]] == [50, 60]
    assert len(result["best"]) == 3
    with np.load(folder / "local" / "archives.npz") as arrays:
        best = arrays["scores"].max(axis=1)
    assert [record["score"] for record in result["best"]] == pytest.approx(best.tolist())
    mean = result["budgets"][-1]["rank"]["mean"]
    assert f"60 queries: rank {mean:.2f} ± " in out
    assert "50 queries, less evolution: rank " in out
    assert (folder / "local" / "plots" / "anytime.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_all_algorithms_are_compared(runs: tuple[pathlib.Path, str], table_path: pathlib.Path) -> None:
    folder, _ = runs
    for algorithm in ALGORITHMS:
        config = BlackboxConfig(table=table_path, trials=3, budget=60, algorithm=algorithm)
        name, ids, scores = archive(folder / "evolution", config)
        assert (name, ids.shape, scores.shape) == ("evolution", (3, 60), (3, 60))


@pytest.mark.parametrize(
    ("name", "content"),
    [("archives.npz", b""), ("archives.npz", None), ("config.json", b"[]"), ("config.json", b'{"identity": [3]}')],
)
def test_a_damaged_run_is_not_compared(
    runs: tuple[pathlib.Path, str],
    table_path: pathlib.Path,
    name: str,
    content: bytes | None,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, _ = runs
    file = folder / "evolution" / name
    file.write_bytes(file.read_bytes()[:100] if content is None else content)
    command = f"blackbox --table {table_path} {COMMON} --out {folder}/other --against {folder}/evolution"
    assert call(command) == 2
    error = capsys.readouterr().err
    assert error == f"error: --against: {folder}/evolution holds no finished run of this script\n"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--trials 3 --table nowhere.npz", "--table: cannot read nowhere.npz"),
        ("--trials 3 --seed 1", "was run with --seed 0, not 1"),
        ("--trials 2", "was run with --trials 3, not 2"),
        ("--trials 3 --dataset cifar100", "was run with --dataset cifar10, not cifar100"),
        ("--trials 3 --identity class", "was run with --identity cell, not class"),
    ],
)
def test_another_benchmark_or_other_trials_are_not_compared(
    runs: tuple[pathlib.Path, str],
    table_path: pathlib.Path,
    flags: str,
    sentence: str,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, _ = runs
    command = f"blackbox --table {table_path} {flags} --budget 60 --out {folder}/other --against {folder}/evolution"
    assert call(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --")
    assert sentence in error
    assert not (folder / "other").exists()
