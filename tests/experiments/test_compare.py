"""The comparison of runs: which are grouped, what is computed, and what is said to a wrong folder."""

import json
import pathlib

import numpy as np
import pytest

from experiments import cli, compare
from gaea_jax import plot
from gaea_jax.errors import UsageError

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "results"
IDENTITY = {"--space": "darts", "--method": "gaea", "--order": "joint", "--dataset": "cifar10"}
IDENTITY |= {"--clamp": None, "--arch-learning-rate": None}


def report(step, entropy=1.0, test=None, rank=None, wall_s=None):
    """A report of a search; with a table only if `test` is given."""
    record = {"step": step, "wall_s": step / 10 if wall_s is None else wall_s, "accuracy": step + 0.5}
    record["entropy"] = {"normal": entropy - 0.25, "reduce": entropy + 0.25, "normal_edges": 100.0}
    if test is not None:
        record["table"] = {
            "cifar10": {"test": test, "rank": rank, "valid": 1.0, "oracle": 94.0},
            "cifar100": {"test": test - 20, "rank": 1, "valid": 1.0, "oracle": 73.0},
        }
    return record


@pytest.fixture
def make(tmp_path):
    """Writes the folder of a run and returns it."""

    def write(name, records, *, seed=0, config=True, finished=True, **flags):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        identity = {**IDENTITY, **{f"--{flag.replace('_', '-')}": value for flag, value in flags.items()}}
        if config:
            (folder / "config.json").write_text(json.dumps({"out": name, "identity": {**identity, "--seed": seed}}))
        if finished:
            result = {"space": identity["--space"], "method": identity["--method"], "seed": seed, "steps": 30}
            (folder / "result.json").write_text(json.dumps({**result, "table": records[-1].get("table")}))
        return folder

    return write


def summary(*paths):
    runs = [compare.read_run(path) for path in compare.find_runs(paths)]
    return compare.summarise(compare.group(runs), compare.quantities(runs))


def call(monkeypatch, *arguments):
    """Runs the script in this process; returns its exit status."""
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, arguments)])
    try:
        cli.main(compare.run, compare.Flags, "Compare.")
    except SystemExit as stop:
        return stop.code
    return 0


def test_runs_that_differ_in_their_seed_are_a_group_and_labels_say_only_what_differs(make):
    def runs(folder, **flags):
        for seed in (0, 1):
            make(f"{folder}/seed-{seed}", [report(10), report(30)], seed=seed, **flags)
        return make(f"{folder}-alone", [report(10), report(30)], seed=7, **flags)

    paths = [runs("a"), runs("b", order="alternating"), runs("c", arch_learning_rate=0.3, clamp="release")]
    folders = [path.parent / path.name.removesuffix("-alone") for path in paths]
    groups = summary(*paths, *folders)
    assert [group["label"] for group in groups] == [
        "joint",
        "alternating",
        "joint, release, arch learning rate 0.3",
    ]
    assert [group["seeds"] for group in groups] == [[7, 0, 1]] * 3


def test_a_group_alone_is_called_by_its_method_and_equal_labels_by_their_folders(make):
    first = make("one", [report(10)])
    assert [group["label"] for group in summary(first)] == ["gaea"]
    # What an older run did not know of is no difference to speak of.
    second = make("two_seed3", [report(10)], seed=3, newer=1)
    assert [group["label"] for group in summary(first, second)] == [f"gaea ({first})", f"gaea ({first.parent / 'two'})"]


def test_long_values_are_cut_in_labels(make):
    cells = ["|" + "nor_conv_3x3~0|" * 6, "|" + "skip_connect~0|" * 6]
    labels = [group["label"] for group in summary(*(make(cell[1:5], [report(10)], genotype=cell) for cell in cells))]
    assert labels == [f"{cell[:39]}…" for cell in cells]


def test_without_a_configuration_the_folder_without_its_seed_tells_runs_apart(make):
    paths = [
        make(f"gaea_{order}_seed{seed}", [report(10)], seed=seed, config=False)
        for order in ("joint", "alternating")
        for seed in (0, 1)
    ]
    groups = summary(*paths)
    assert [group["seeds"] for group in groups] == [[0, 1], [0, 1]]
    assert [group["label"] for group in groups] == ["gaea_joint", "gaea_alternating"]


def test_seeds_are_read_off_at_common_steps_up_to_the_end_of_the_shortest(make):
    paths = [
        make("seed-0", [report(10, 1.0, 90.0, 5), report(20, 2.0, 92.0, 3), report(40, 3.0, 93.0, 1)], seed=0),
        make("seed-1", [report(15, 2.0, 80.0, 9, wall_s=3.5), report(25, 4.0, 84.0, 7, wall_s=4.5)], seed=1),
    ]
    (group,) = summary(*paths)
    entropy = group["curves"]["entropy"]
    assert entropy["step"] == [15, 20, 25]
    first, second = np.array([1.5, 2.0, 2.25]), np.array([2.0, 3.0, 4.0])
    np.testing.assert_allclose(entropy["mean"], (first + second) / 2)
    np.testing.assert_allclose(entropy["std"], abs(first - second) / 2)
    np.testing.assert_allclose(entropy["wall_s"], [(1.5 + 3.5) / 2, (2.0 + 4.0) / 2, (2.5 + 4.5) / 2])
    # The derived cell stays that of the last report; there is none between two reports.
    np.testing.assert_allclose(group["curves"]["cifar10 test"]["mean"], [(90 + 80) / 2, (92 + 80) / 2, (92 + 84) / 2])
    np.testing.assert_allclose(group["curves"]["cifar10 rank"]["std"], [2, 3, 2])
    np.testing.assert_allclose(group["curves"]["cifar100 test"]["mean"], [65, 66, 68])
    assert set(group["curves"]) == {"entropy", "cifar10 test", "cifar100 test", "cifar10 rank"}


def test_final_numbers_are_of_the_end_of_each_run_with_the_population_deviation(make):
    paths = [
        make(f"seed-{seed}", [report(10, 1.0, 50.0, 900), report(30 - seed, 1.0, test, rank)], seed=seed, finished=seed)
        for seed, test, rank in ((0, 90.0, 10), (1, 93.0, 4))
    ]
    (group,) = summary(*paths)
    assert group["unfinished"] == 1
    assert group["final"]["cifar10 test"] == {"mean": 91.5, "std": 1.5}
    assert group["final"]["cifar10 rank"] == {"mean": 7.0, "std": 3.0}
    assert group["final"]["steps"] == [29, 30]
    assert group["final"]["wall_s"]["mean"] == pytest.approx(2.95)
    titles, line = compare.lines([group])
    assert " ".join(titles.split()) == "group seeds entropy cifar10 test cifar100 test cifar10 rank steps time"
    assert "gaea   2 (1 unfinished)" in line and "91.50 ± 1.50" in line and "29-30" in line and line.endswith("3 s")


def test_a_finished_run_counts_by_the_cell_it_chose(make):
    path = make("run", [report(10, 1.0, 93.0, 2), report(30, 1.0, 50.0, 900)])
    (path / "result.json").write_text(json.dumps({"seed": 0, "table": report(10, 1.0, 93.0, 2)["table"]}))
    assert summary(path)[0]["final"]["cifar10 rank"] == {"mean": 2.0, "std": 0.0}


def test_what_a_run_lacks_is_left_out_and_the_rest_is_drawn(make):
    searched = make("a", [report(10, 1.2, 90.0, 5), report(30, 1.1, 91.0, 4)])
    plain = make("b", [report(10, 1.3), report(30, 1.2)], space="darts_nozero")
    trained = make("c", [{"step": 30, "wall_s": 1.0, "accuracy": 80.0}], dataset="digits")
    (trained / "result.json").write_text(json.dumps({"seed": 0, "test_accuracy": 77.5}))
    groups = {group["label"]: group for group in summary(searched, plain, trained)}
    assert {label: set(group["curves"]) for label, group in groups.items()} == {
        "darts, cifar10": {"entropy", "accuracy", "cifar10 test", "cifar100 test", "cifar10 rank"},
        "darts_nozero, cifar10": {"entropy", "accuracy"},
        "darts, digits": {"accuracy"},
    }
    assert groups["darts, digits"]["final"]["test_accuracy"] == {"mean": 77.5, "std": 0.0}
    titles, *rows = compare.lines(list(groups.values()))
    column = titles.index("cifar10 test")
    assert [row[column:].split()[0] for row in rows] == ["91.00", "-", "-"]


def test_a_folder_of_seeds_stands_for_its_runs_and_one_that_has_not_reported_is_left_out(make, tmp_path):
    for seed in (10, 9):
        make(f"all/seed-{seed}", [report(10)], seed=seed)
    (tmp_path / "all" / "seed-11").mkdir()
    (tmp_path / "all" / "result.json").write_text("{}")
    assert [path.name for path in compare.find_runs([tmp_path / "all"])] == ["seed-9", "seed-10"]


def test_the_script_prints_a_table_and_writes_picture_and_numbers(make, monkeypatch, capsys, tmp_path):
    paths = [make("joint", [report(10, 1.2, 90.0, 5), report(30, 1.1, 91.0, 4)], finished=False)]
    paths += [make("alternating", [report(10, 1.2, 90.0, 5), report(20, 1.1, 91.0, 4)], order="alternating")]
    assert call(monkeypatch, *paths, "--out", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["group", "joint", "alternating"]
    assert "compare.png" in err
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    groups = json.loads((tmp_path / "out" / "compare.json").read_text())["groups"]
    assert groups == summary(*paths)

    assert call(monkeypatch, *paths, "--out", tmp_path / "figures" / "orders.pdf") == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"orders.pdf", "orders.json"}


def test_the_committed_results_compare(tmp_path):
    (group,) = summary(*sorted(RESULTS.glob("cifar10_gaea_joint_seed*")))
    assert group["label"] == "gaea" and group["seeds"] == [0, 1, 2] and group["unfinished"] == 0
    results = [json.loads(path.read_text()) for path in RESULTS.glob("cifar10_gaea_joint_seed*/result.json")]
    found = [result["table"]["cifar10"]["test"] for result in results]
    assert group["final"]["cifar10 test"] == pytest.approx({"mean": np.mean(found), "std": np.std(found)})
    assert len(group["curves"]["entropy"]["step"]) == 50


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ([], "is missing"),
        (["nowhere"], "nowhere is not a folder"),
        (["notes.txt"], "notes.txt is not a folder"),
        (["empty"], "metrics.jsonl does not exist"),
        (["fresh"], "a run just begun has none"),
        (["bare"], "no seed in config.json or result.json"),
        (["torn"], "cannot be read as JSON"),
        (["list"], "is not a JSON object"),
        (["run", "run/../run"], "is named twice"),
        (["run", "same"], "have the same configuration and seed"),
        (["run", "later"], "share no steps"),
        (["silent"], "wants runs that report entropy"),
        (["run", "--out", "notes.txt"], "notes.txt/compare.png cannot be written"),
    ],
)
def test_a_wrong_folder_ends_with_status_2_and_one_line(make, monkeypatch, capsys, tmp_path, named, said):
    make("run", [report(10), report(20)])
    make("same", [report(10)])
    make("later", [report(25)], seed=1)
    make("fresh", [], finished=False)
    make("bare", [report(10)], config=False, finished=False)
    make("silent", [{"step": 1, "wall_s": 1.0}])
    (make("torn", [report(10)]) / "config.json").write_text("{")
    (make("list", [report(10)]) / "config.json").write_text("[1]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *named) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("error: --") and said in err
    assert (tmp_path / "notes.txt").read_text() == "kept" and not (tmp_path / "runs").exists()


def test_all_there_is_to_compare_can_be_drawn(make):
    runs = [compare.read_run(make("a", [report(10, 1.2, 90.0, 5)])), compare.read_run(make("b", [report(10)], seed=1))]
    panels = list(compare.quantities(runs))
    assert [panel.curve for panel in panels if panel.held] == ["cifar10 test", "cifar100 test", "cifar10 rank"]
    assert [panel.curve for panel in panels if panel.rank] == ["cifar10 rank"]
    assert all(isinstance(panel, plot.Panel) for panel in panels)


def unknown(step):
    """A report of a cell that the table lacks."""
    return {**report(step), "table": {"cifar10": None}}


def valid(step, accuracy, rank, cells):
    """A report of a table of some cells, which has no test accuracy."""
    found = {"valid": accuracy, "metric": "valid", "rank": rank, "oracle": 95.0, "cells": cells}
    return {**report(step), "table": {"cifar10": found}}


def test_a_cell_that_the_table_lacks_leaves_a_gap(make, tmp_path):
    one = make("one", [valid(10, 93.0, 3, 195), unknown(20), unknown(30), valid(40, 90.0, 9, 195)])
    (alone,) = summary(one)
    assert alone["curves"]["cifar10 valid"]["mean"] == [93.0, None, None, 90.0]
    assert alone["curves"]["cifar10 rank of 195"]["mean"] == [3.0, None, None, 9.0]
    # No step has the cells of both; their entropies are compared all the same.
    other = make("other", [unknown(10), valid(20, 91.0, 5, 195), unknown(30), unknown(40)], seed=1)
    (both,) = summary(one, other)
    assert both["curves"]["cifar10 valid"]["mean"] == [None] * 4
    assert both["curves"]["entropy"]["step"] == [10, 20, 30, 40]
    assert "cifar10 valid" not in both["final"]
    panels = list(compare.quantities([compare.read_run(path) for path in (one, other)]))
    plot.comparison([alone], panels[:1] + [panel for panel in panels if panel.held], tmp_path / "gaps.png")
    json.dumps([alone, both], allow_nan=False)


def test_tables_of_other_metrics_and_numbers_of_cells_have_panels_of_their_own(make):
    runs = [make("a", [report(10, 1.2, 90.0, 50)]), make("b", [valid(10, 93.0, 3, 195)], method="pc_darts")]
    first, second = summary(*runs)
    assert [name for name in first["curves"] if "cifar10 " in name] == ["cifar10 test", "cifar10 rank"]
    assert [name for name in second["curves"] if "cifar10 " in name] == ["cifar10 valid", "cifar10 rank of 195"]


def test_a_report_that_is_broken_is_named(make):
    path = make("run", [report(10)])
    (path / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UsageError, match="line 1"):
        summary(path)
