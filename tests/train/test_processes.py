"""One run of two processes: the numbers of one process, and what happens when one of them ends."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from gaea_jax import processes
from gaea_jax.errors import UsageError
from gaea_jax.train import Interrupted, SearchConfig, search, sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = SearchConfig(
    objective="bilevel", steps=20, report_every=5, channels=4, cells=1, batch_size=16, eval_images=16, seed=3
)


class Pair:
    """The two processes of a search, as a user starts them."""

    def __init__(self, out: pathlib.Path, programs: str, *flags: str, other_out: pathlib.Path | None = None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        fields = {name: value for name, value in CONFIG.fields().items() if value != getattr(SearchConfig, name)}
        given = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
        together = ["--coordinator", coordinator, "--processes", "2"]
        # Without the caches of tests, whose programs are compiled otherwise.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": programs, "JAX_NUM_CPU_DEVICES": "1"}
        self.out = out
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "experiments.search",
                    f"--out={to}",
                    *given,
                    *together,
                    f"--process={n}",
                    *flags,
                ],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n, to in enumerate((out, other_out or out))
        ]

    def reports(self) -> list[dict]:
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [{name: value for name, value in json.loads(line).items() if name != "wall_s"} for line in lines]

    def kill_after(self, reports: int, process: int) -> None:
        """Kills a process once there are so many reports."""
        while len(self.reports()) < reports:
            assert all(one.poll() is None for one in self.processes), [one.communicate() for one in self.processes]
            time.sleep(0.05)
        self.processes[process].kill()

    def ended(self) -> list[tuple[int, str, str]]:
        """Exit status, output and errors of both."""
        said = [one.communicate(timeout=300) for one in self.processes]
        return [(one.returncode, *texts) for one, texts in zip(self.processes, said, strict=True)]


def test_two_processes_make_the_run_of_one(tmp_path: pathlib.Path) -> None:
    out, programs = tmp_path / "run", str(tmp_path / "programs")

    pair = Pair(out, programs)
    pair.kill_after(1, 1)
    (status, _, said), (killed, _, _) = pair.ended()
    assert (status, killed) == (1, -signal.SIGKILL), said
    assert "error: another process of the run has ended; start all processes again with --resume" in said
    assert not (out / "result.json").exists()

    pair = Pair(out, programs, "--resume")
    (status, printed, said), (other, silent, _) = pair.ended()
    assert (status, other) == (0, 0), said
    alone = search(CONFIG, devices=jax.devices()[:2])
    # What the connections say of themselves goes there too.
    assert printed.splitlines()[-1] == str(alone.genotype)
    assert str(alone.genotype) not in silent
    assert json.loads((out / "result.json").read_text())["genotype"] == str(alone.genotype)
    expected = [{name: value for name, value in record.items() if name != "wall_s"} for record in alone.records]
    found = pair.reports()
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for record, other_record in zip(found, expected, strict=True):
        # Sums over devices are rounded in another order, and every step makes more of it.
        near, off = (1e-5, 1e-5) if record["step"] == CONFIG.report_every else (3e-3, 2e-3)
        assert record["loss"] == pytest.approx(other_record["loss"], rel=near)
        np.testing.assert_allclose(record["mixture"]["cell"], other_record["mixture"]["cell"], atol=off)


def test_processes_without_a_common_folder_are_told(tmp_path: pathlib.Path) -> None:
    pair = Pair(tmp_path / "run", str(tmp_path / "programs"), other_out=tmp_path / "elsewhere")
    for status, _, said in pair.ended():
        assert status == 2, said
        assert "must be on a file system that all processes share" in said
    assert not (tmp_path / "elsewhere").exists()


def test_a_signal_at_another_process_stops_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    paces: list[tuple[int, ...]] = []

    def agreed(*numbers: int) -> list[tuple[int, ...]]:
        paces.append(numbers)
        other = (signal.SIGTERM, 100) if len(paces) > 4 else numbers
        return [numbers, other]

    config = dataclasses.replace(CONFIG, out=tmp_path / "run")
    alone = search(dataclasses.replace(CONFIG, out=tmp_path / "alone"), devices=jax.devices()[:1])
    with monkeypatch.context() as patch:
        patch.setattr(processes, "agreed", agreed)
        with pytest.raises(Interrupted) as caught:
            search(config, devices=jax.devices()[:1])
    assert caught.value.signal == signal.SIGTERM
    assert 0 < caught.value.step < CONFIG.steps
    resumed = search(dataclasses.replace(config, resume=True), devices=jax.devices()[:1])
    chex.assert_trees_all_equal(resumed.state, alone.state)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("localhost:1", None, None), "coordinator: needs --processes and --process beside it, and they need it"),
        ((None, 2, 0), "coordinator: needs --processes and --process beside it, and they need it"),
        (("localhost:1", 2, 2), r"process: must be in 0\.\.1, not 2"),
    ],
)
def test_incomplete_or_wrong_numbers_are_refused(arguments: tuple, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        processes.connect(*arguments)


def test_several_processes_do_not_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    configs = [dataclasses.replace(CONFIG, out=tmp_path / "out", seed=seed) for seed in (0, 1)]
    with pytest.raises(UsageError, match="seeds: cannot be given to several processes"):
        sweep(configs)
    assert not (tmp_path / "out").exists()


def test_one_process_agrees_with_itself_and_puts_as_jax_does() -> None:
    assert processes.is_first()
    assert processes.agreed(3, 4) == [(3, 4)]
    assert processes.first(lambda: 5) == 5
    tree = {"numbers": np.arange(4), "key": jax.random.key(0)}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    put = processes.put(tree, sharding)
    assert put["numbers"].sharding == sharding
    assert put["numbers"].tolist() == [0, 1, 2, 3]
    assert jax.random.key_data(put["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()
