"""The scripts as a user sees them: what they write, how they stop, and what they say to a wrong flag.

``pytest -s -k bad_input tests/experiments/test_scripts.py`` prints each wrong command and the answer to it.
"""

import dataclasses
import inspect
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from experiments import search as search_script
from experiments.cli import _first_paragraph, keep_programs, main
from experiments.suites.kills import checkpoints, differences, outcome
from gaea_jax.blackbox import BlackboxConfig
from gaea_jax.metrics import read_metrics
from gaea_jax.spaces import get_space
from gaea_jax.train import DivergedError, Interrupted, RetrainConfig, SearchConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = "--channels 4 --cells 1 --batch-size 16"
STEPS = 60
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
SEARCH = f"search --dataset digits --steps {STEPS} --report-every 3 {SMALL}"
TRAIN = f"retrain --genotype cell.txt --steps 2 {SMALL}"

# Command, flag that the answer has to name, and what else has to be in it. The files are those of `workspace`.
BAD_INPUT = [
    ("search --space nasnet", "--space", "nas_bench_201_nozero"),
    ("search --method evolution", "--method", "gaea"),
    ("search --dataset digitz", "--dataset", "'digits'"),
    ("search --order both", "--order", "joint, alternating"),
    ("search --objective bilevel-ish", "--objective", "single-level"),
    ("search --objective bilevel --order joint", "--order", "alternating"),
    ("search --objective bilevel --batch-size 1000", "--batch-size", "718 training and 719 validation images"),
    ("search --objective bilevel --split other-split.npz", "--split", "splits 60 images, but the data set has 1437"),
    ("search --objective bilevel --split notes.txt", "--split", ".npz"),
    ("search --split other-split.npz", "--split", "bilevel"),
    ("search --objective bilevel-unrolled --hypergradient some", "--hypergradient", "exact, finite-difference"),
    ("search --derive-from best_valid", "--derive-from", "held-out"),
    ("search --method random", "--objective", "bilevel"),
    ("search --method gaea --temperature 2", "--temperature", "gaea"),
    ("search --method gaea --partial 4", "--partial", "gaea"),
    ("search --method gaea_pc_darts", "--method", "the DARTS space and NAS-Bench-1Shot1 have them"),
    ("search --space darts --method pc_darts --partial 3", "--partial", "16 channels"),
    ("search --space darts --method pc_darts --partial 16", "--partial", "even part"),
    ("search --space darts --method pc_darts --partial 0", "--partial", "more than 0"),
    ("search --space darts --method pc_darts --partial some", "--partial", "INT"),
    ("search --space darts --method darts --edge-learning-rate 0.1", "--edge-learning-rate", "darts"),
    ("search --method gaea --edge-learning-rate 0.1", "--space", "no weights of edges"),
    ("search --space darts --stem imagenet", "--dataset", "divisible by 32"),
    ("search --space darts --layers 0", "--cells", "more than 0"),
    ("search --stem imagenet", "--stem", "nas_bench_201_nozero"),
    ("search --eval-statistics some", "--eval-statistics", "batch, running, both"),
    ("search --image-size 32", "--image-size", "--stream"),
    ("search --jitter", "--jitter", "3 channels"),
    ("search --stream", "--stream", "digits"),
    ("search --stream --loop scan", "--loop", "python"),
    ("search --loop while", "--loop", "auto, python, scan"),
    ("search --dtype float8", "--dtype", "float32, bfloat16"),
    ("search --clamp hard", "--clamp", "shift-invariant"),
    ("search --method darts --clamp release", "--clamp", "darts"),
    ("search --table nowhere.npz", "--table", "No such file"),
    ("search --table other.npz", "--table", "op_names wants"),
    ("search --table notes.txt", "--table", ".npz"),
    ("search --table empty", "--table", "empty"),
    ("search --dataset cifar10 --data-dir empty", "--data-dir", "tfds build cifar10"),
    ("search --steps -3", "--steps", "more than 0"),
    ("search --epochs 0", "--epochs", "more than 0"),
    ("search --steps 3 --epochs 1", "--steps", "epochs"),
    ("search --steps abc", "--steps", "INT"),
    ("search --steps", "--steps", "Missing value"),
    ("search --stepz 3", "--stepz", "--help"),
    ("search stray", "stray", "--help"),
    ("search --resume yes", "yes", "--help"),
    ("search --seed abc", "--seed", "int"),
    ("search --seed -1", "--seed", "0 or more"),
    ("search --channels 0", "--channels", "more than 0"),
    ("search --cells 0", "--cells", "more than 0"),
    ("search --batch-size 0", "--batch-size", "more than 0"),
    ("search --learning-rate nan", "--learning-rate", "more than 0"),
    ("search --seeds 0", "--seeds", "more than 0"),
    ("search --seeds 2 --out run", "--out", "--resume"),
    ("search --learning-rates 0.1 0.1", "--learning-rates", "a value twice"),
    ("search --arch-learning-rates 0.1 -1", "--arch-learning-rate", "more than 0, not -1"),
    ("search --seeds 2 --out nowhere --resume", "--resume", "no run to continue"),
    ("search --seeds 2 --stream --dataset cifar10", "--stream", "one search at a time"),
    ("retrain", "--genotype", "required"),
    ("retrain --genotype '|conv~0|'", "--genotype", "conv"),
    ("retrain --genotype nowhere.json", "--genotype", "neither a genotype nor a file"),
    ("retrain --genotype empty", "--genotype", "neither a genotype nor a file"),
    ("retrain --genotype notes.txt", "--genotype", "wants"),
    ("retrain --genotype other.npz", "--genotype", "neither a genotype nor a file"),
    ("retrain --genotype list.json", "--genotype", "not of the form"),
    ("retrain --genotype number.json", "--genotype", "wants"),
    (f"retrain --genotype '{SKIPS}' --space darts_", "--space", "nas_bench_201"),
    (f"retrain --genotype '{SKIPS}' --space darts", "--genotype", "Genotype(normal="),
    ("retrain --genotype DARTS_V3", "--genotype", "known are DARTS_V1, DARTS_V2, PC_DARTS_CIFAR"),
    ("retrain --genotype DARTS_V2 --space nas_bench_201", "--genotype", "neither a genotype nor a file"),
    ("retrain --genotype 'Genotype(normal=[])'", "--genotype", "normal"),
    ("retrain --genotype cut.json", "--genotype", "wants"),
    ("retrain --genotype other-space.json", "--space", "'nasnet' is unknown"),
    ("retrain --genotype wrong-space.json", "--genotype", "wants Genotype(normal="),
    (
        f"retrain --genotype '{SKIPS.replace('skip_connect', 'none')}' --space nas_bench_201_nozero",
        "--genotype",
        "none",
    ),
    (f"retrain --genotype '{SKIPS}' --preset darts_", "--preset", "nas_bench_201_short"),
    (f"retrain --genotype '{SKIPS}' --cutout -1", "--cutout", "0 or more"),
    (f"retrain --genotype '{SKIPS}' --cutout 16", "--cutout", "less than the 16 pixels"),
    (f"retrain --genotype '{SKIPS}' --auxiliary-weight 0.4", "--auxiliary-weight", "no auxiliary head"),
    (f"retrain --genotype '{SKIPS}' --drop-path 0.2", "--drop-path", "NAS-Bench-201"),
    ("retrain --genotype DARTS_V2 --drop-path 1", "--drop-path", "less than 1"),
    ("retrain --genotype DARTS_V2 --label-smoothing 1.5", "--label-smoothing", "less than 1"),
    ("retrain --genotype DARTS_V2 --schedule step", "--schedule", "cosine, warmup_linear"),
    ("retrain --genotype DARTS_V2 --cutout 0 --stem mobile", "--stem", "cifar, imagenet"),
    ("retrain --genotype DARTS_V2 --stem imagenet --cutout 0", "--dataset", "divisible by 32"),
    ("retrain --genotype DARTS_V2 --layers 0", "--cells", "more than 0"),
    ("retrain --genotype DARTS_V2 --channels 5 --cutout 0", "--channels", "even"),
    ("retrain --genotype DARTS_V2 --preset darts_imagenet", "--image-size", "--stream"),
    ("retrain --genotype DARTS_V2 --cutout 0 --jitter True", "--jitter", "3 channels"),
    (f"{TRAIN} --accumulate 3", "--accumulate", "must divide the 2 images of a batch on a device"),
    (f"{TRAIN} --accumulate 0", "--accumulate", "more than 0"),
    (f"{TRAIN} --remat yes", "yes", "--help"),
    (f"{TRAIN} --out run --resume --accumulate 2", "--resume", "--accumulate was 1, now 2"),
    ("retrain --genotype DARTS_V2 --cutout 0 --auxiliary-weight 0 --steps 2 --out run --resume", "--resume", "was"),
    (f"{TRAIN} --batch-size 2000", "--batch-size", "1437"),
    (f"{TRAIN} --out run", "--out", "--resume"),
    (f"{TRAIN} --out empty/..", "--out", "other files"),
    (f"{TRAIN} --out notes.txt", "--out", "notes.txt"),
    (f"{TRAIN} --out notes.txt/new", "--out", "Not a directory"),
    (f"{TRAIN} --out nowhere --resume", "--resume", "no run to continue"),
    (f"{TRAIN} --out run --resume --channels 8", "--resume", "--channels was 4, now 8"),
    (f"{TRAIN} --out run --resume --steps 3", "--resume", "--steps was 2, now 3"),
    (f"{TRAIN} --out torn --resume", "--resume", "damaged"),
    ("benchmark", "convergence, data, kernels, kills, loops, methods, seeds, startup, supernet, tpu", "--help"),
    ("benchmark speed", "speed", "--help"),
    ("benchmark supernet --steps x", "--steps", "int"),
    ("benchmark supernet --steps 1 --rounds 1 --channels 2 --image 8 --yardstick false", "--yardstick", "JSON"),
    ("blackbox --budget 50", "--table", "file of the benchmark"),
    ("blackbox --table notes.txt", "--table", ".npz"),
    ("blackbox --table other.npz --algorithm annealing", "--algorithm", "random, evolution"),
    ("blackbox --table other.npz --against empty", "--against", "no finished run"),
    ("blackbox --table other.npz --algorithm evolution --truth 5", "--truth", "evolution"),
    ("blackbox --table other.npz --trials 0", "--trials", "more than 0"),
]
# The others run in the process of the tests, which spares the start of Python.
IN_A_PROCESS = ("search --steps abc", f"{TRAIN} --out run", f"{TRAIN} --out torn --resume")


def call(command):
    """Runs a script in this process, as ``python -m`` does; returns its exit status."""
    script, *flags = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / "experiments" / f"{script}.py"), *flags])
        patch.delitem(sys.modules, f"experiments.{script}", raising=False)
        try:
            runpy.run_module(f"experiments.{script}", run_name="__main__")
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment of the scripts' processes, in which they compile fast, and each program once for all of them."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="session")
def script(environment):
    """Starts a script in a process of its own; returns the running process."""

    def start(command, folder):
        name, *flags = shlex.split(command)
        return subprocess.Popen(
            [sys.executable, "-m", f"experiments.{name}", *flags],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def workspace(script, tmp_path_factory):
    """A folder with a finished run, one whose newest checkpoint is cut short, and files that are no input."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("not a genotype\n")
    (folder / "number.json").write_text('{"genotype": 5}\n')
    (folder / "list.json").write_text("[1, 2]\n")
    (folder / "cut.json").write_text('{"space": "darts", "normal": [[["sep')
    (folder / "other-space.json").write_text('{"space": "nasnet", "genotype": "x"}\n')
    (folder / "wrong-space.json").write_text(json.dumps({"space": "darts", "genotype": SKIPS}))
    (folder / "cell.txt").write_text(SKIPS + "\n")
    np.savez(folder / "other-split.npz", allow_pickle=False, train=np.arange(30), valid=np.arange(30, 60))
    columns = [f"{prefix}_{metric}_200" for prefix in ("c10", "c100", "in16") for metric in ("valid", "test")]
    other = {"op_names": np.array(["none", "sep_conv_3x3"]), "edges": np.zeros(14), "ops": np.zeros((100, 14))}
    np.savez(folder / "other.npz", allow_pickle=False, **other, **dict.fromkeys(columns, np.zeros(100)))
    finish(script(f"{TRAIN} --out run", folder))
    shutil.copytree(folder / "run", folder / "torn")
    for path in (folder / "torn" / "checkpoints" / "2" / "leaves").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    return folder


@pytest.mark.parametrize(("command", "flag", "accepted"), BAD_INPUT, ids=[case[0] for case in BAD_INPUT])
def test_bad_input_gets_one_line_and_status_2(command, flag, accepted, script, workspace, monkeypatch, capfd):
    monkeypatch.chdir(workspace)
    before = snapshot(workspace)
    if command in IN_A_PROCESS:
        process = script(command, workspace)
        out, err = process.communicate(timeout=300)
        status = process.returncode
    else:
        status = call(command)
        out, err = capfd.readouterr()
    print(f"\n$ python -m experiments.{command}\n{err}", end="")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert flag in err and accepted in err
    assert snapshot(workspace) == before


@pytest.mark.parametrize("rule", ["", " ---------- \n"], ids=["box", "no box"])
def test_the_answer_to_a_wrong_flag_is_read_with_and_without_a_box(rule):
    said = f" Title \n{rule} Missing: \n     --genotype \n ---------- \n For help: --help \n"
    assert _first_paragraph(said) == "Missing: --genotype"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DivergedError("loss is not finite at step 3"), 1, "loss is not finite at step 3"),
        (Interrupted(7, signal.SIGTERM), 143, "SIGTERM at step 7: the state is saved, continue with --resume"),
        (KeyboardInterrupt(), 130, "SIGINT: stopped at once, without saving"),
    ],
)
def test_what_ends_a_run_is_one_line_and_a_status(error, status, said, monkeypatch, capsys):
    def run(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["search.py"])
    with pytest.raises(SystemExit) as stop:
        main(run, SearchConfig, "A search.")
    assert stop.value.code == status
    assert capsys.readouterr() == ("", f"error: {said}\n")


@pytest.mark.parametrize("named", [None, "elsewhere"])
def test_compiled_programs_are_kept_for_the_user_or_where_jax_was_told_to(named, monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", named)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == (named or str(tmp_path / "gaea_jax" / "programs"))


SCRIPTS = [("search", SearchConfig), ("retrain", RetrainConfig), ("blackbox", BlackboxConfig)]


@pytest.mark.parametrize(("script_name", "config"), SCRIPTS)
def test_help_says_what_every_field_is_for(script_name, config, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert call(f"{script_name} --help") == 0
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert f"usage: python -m experiments.{script_name} " in text
    documented = {}
    for base in config.__mro__[:-1]:
        attributes = inspect.getdoc(base).partition("Attributes:\n")[2]
        documented |= dict(re.findall(r"^  (\w+): (.+(?:\n    .+)*)", attributes, re.MULTILINE))
    assert documented.keys() >= {field.name for field in dataclasses.fields(config)}
    for field in dataclasses.fields(config):
        flag = f"--{field.name.replace('_', '-')}"
        assert re.search(rf"{flag}\b.*? {re.escape(' '.join(documented[field.name].split()))}", text), flag


@pytest.fixture(scope="module")
def searched(script, tmp_path_factory):
    """An unbroken search: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder / "run", *finish(script(f"{SEARCH} --out run", folder))


def test_a_search_prints_its_genotype_and_fills_its_folder(searched):
    run, out, err = searched
    result = json.loads((run / "result.json").read_text())
    assert out == result["genotype"] + "\n"
    assert str(get_space("nas_bench_201_nozero").parse(result["genotype"])) == result["genotype"]
    assert (result["steps"], result["seed"], result["table"]) == (STEPS, 0, None)
    assert err.splitlines()[-1] == "written to run"
    assert json.loads((run / "config.json").read_text())["channels"] == 4
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [report["step"] for report in reports] == list(range(3, STEPS + 1, 3))
    assert reports[-1]["genotype"] == result["genotype"]
    assert max(checkpoints(run)) == STEPS
    plots = sorted((run / "plots").iterdir())
    names = ["cell.dot", "cell.png", "changes.png", "entropy.png", "loss_accuracy.png", "mixture.png"]
    assert [plot.name for plot in plots] == names
    for plot in plots:
        assert plot.read_bytes().startswith(b"digraph" if plot.suffix == ".dot" else b"\x89PNG")


def test_seeds_whose_cells_the_table_lacks_are_counted():
    def found(seed, entry):
        config = SearchConfig(seed=seed)
        return types.SimpleNamespace(config=config, records=[{"loss": 1.0, "accuracy": 50.0}], table={"cifar10": entry})

    known = {"metric": "valid", "valid": 90.0}
    group = search_script.sum_up([found(0, known), found(1, None)])
    assert group["table"] == {"cifar10": {"metric": "valid", "known": 1, "mean": 90.0, "std": 0.0}}
    said = search_script.line(group, search_script.Flags())
    assert said == "2 seeds: cifar10: valid 90.00 ± 0.00 % (1 of 2 cells in the table)"
    assert search_script.sum_up([found(0, None), found(1, None)])["table"] == {}


def test_several_seeds_are_summed_up(searched, script, table_path, tmp_path):
    out, _ = finish(script(f"{SEARCH} --seeds 2 --table {table_path} --out runs", tmp_path))
    runs = [json.loads((tmp_path / f"runs/seed-{seed}/result.json").read_text()) for seed in (0, 1)]
    assert [run["seed"] for run in runs] == [0, 1]
    reports, alone = (
        [{**report, "wall_s": 0, "table": None} for report in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path / "runs/seed-0", searched[0])
    )
    assert reports == [{**report, "table": None} for report in alone]
    summary = json.loads((tmp_path / "runs/result.json").read_text())
    assert summary["runs"] == runs
    (group,) = summary["groups"]
    assert (group["seeds"], group["learning_rate"], group["arch_learning_rate"]) == ([0, 1], 0.025, None)
    ends = [read_metrics(tmp_path / f"runs/seed-{seed}/metrics.jsonl")[-1] for seed in (0, 1)]
    assert group["loss"]["mean"] == pytest.approx((ends[0]["loss"] + ends[1]["loss"]) / 2)
    assert group["table"].keys() == {"cifar10", "cifar100", "ImageNet16-120"}
    for dataset, found in group["table"].items():
        first, second = (run["table"][dataset]["test"] for run in runs)
        assert found["mean"] == pytest.approx((first + second) / 2)
        assert found["std"] == pytest.approx(abs(first - second) / 2)
        assert f"{dataset}: test {found['mean']:.2f} ± {found['std']:.2f} %" in out
    assert "2 seeds: cifar10: test" in out


def test_learning_rates_are_swept(script, tmp_path):
    out, _ = finish(script(f"{SEARCH} --arch-learning-rates 0.1 0.3 --out runs", tmp_path))
    groups = json.loads((tmp_path / "runs/result.json").read_text())["groups"]
    assert [(group["arch_learning_rate"], group["seeds"]) for group in groups] == [(0.1, [0]), (0.3, [0])]
    assert [line.split(":")[0] for line in out.splitlines()[-2:]] == [
        "arch learning rate 0.1, 1 seed",
        "arch learning rate 0.3, 1 seed",
    ]
    assert len(list((tmp_path / "runs").glob("seed-0-arch-learning-rate-*/result.json"))) == 2


def test_the_cell_of_a_result_is_trained(searched, script, tmp_path):
    out, _ = finish(script(f"retrain --genotype {searched[0]}/result.json --steps 2 {SMALL} --out run", tmp_path))
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["genotype"] == out.splitlines()[0] == searched[1].strip()
    assert f"digits: test {result['test_accuracy']:.2f} %, {result['parameters']:,} parameters" in out
    assert (result["steps"], max(checkpoints(tmp_path / "run"))) == (2, 2)
    assert [plot.name for plot in (tmp_path / "run/plots").iterdir()] == ["loss_accuracy.png"]


def test_a_search_stopped_by_signals_ends_as_the_unbroken_one(searched, script, tmp_path):
    run, resume = tmp_path / "run", ""
    for number in (signal.SIGINT, signal.SIGTERM):
        done = max(checkpoints(run), default=0)
        process = script(f"{SEARCH} --out run {resume}", tmp_path)
        while max(checkpoints(run), default=0) == done:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        process.send_signal(number)
        start = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert time.monotonic() - start < 20
        step = max(checkpoints(run))
        assert done < step < STEPS
        last = f"error: {number.name} at step {step}: the state is saved, continue with --resume"
        assert err.splitlines()[-1] == last
        assert not (run / "result.json").exists()
        resume = "--resume"
    finish(script(f"{SEARCH} --out run --resume", tmp_path))
    assert differences(outcome(run), outcome(searched[0])) == []
