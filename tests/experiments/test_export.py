"""The script around the exporter; what it exports is tested with the library."""

import sys
import types

import pytest

from experiments import cli, export
from gaea_jax.benchmarks import load_table
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201

CELLS = list(map(str, NAS_BENCH_201.genotypes()))
NUMBERS = {cell: number for number, cell in enumerate(CELLS)}


class Nats:
    """A benchmark whose best cell is the last; see ``tests/benchmarks/test_export.py`` for one that is faithful."""

    def __len__(self):
        return len(CELLS)

    def query_index_by_arch(self, arch):
        return NUMBERS[arch]

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        return {"valid-accuracy": index / 200, "test-accuracy": index / 160}


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the script in this process and in a folder with the file ``nats``; returns its exit status."""
    (tmp_path / "nats").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=lambda *_, **__: Nats()))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["export.py", *arguments])
        try:
            cli.main(export.run, export.Flags, "Export.")
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def test_the_script_writes_a_table_and_prints_its_best_cells(call, capsys, tmp_path):
    assert call("--file", "nats", "--out", "tables/nb201.npz") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == ["cifar10", "cifar100", "ImageNet16-120"]
    assert all(f"best test 97.65 %  {CELLS[-1]}" in line for line in out)
    table = load_table(tmp_path / "tables" / "nb201.npz")
    assert table.query(NAS_BENCH_201.parse(CELLS[800]), "cifar100", "valid", 12) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--file nats --out taken.npz", "--out: taken.npz exists"),
        ("--file nowhere --out new.npz", "--file: nowhere does not exist"),
        ("--file nats", "--out"),
        ("--out new.npz", "--file"),
    ],
)
def test_wrong_flags_end_with_status_2_and_one_line(call, capfd, tmp_path, arguments, said):
    (tmp_path / "taken.npz").write_text("kept")
    assert call(*arguments.split()) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and said in err
    assert (tmp_path / "taken.npz").read_text() == "kept" and not (tmp_path / "new.npz").exists()


def test_a_file_that_is_taken_is_refused_before_the_benchmark_is_read(call, monkeypatch, tmp_path):
    def create(*arguments, **options):
        raise AssertionError("was read")

    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=create))
    (tmp_path / "taken.npz").touch()
    assert call("--file", "nats", "--out", "taken.npz") == 2
