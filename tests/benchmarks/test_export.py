"""The exporter on a stand-in for ``nats_bench.NATStopology`` whose numbers say what they are of."""

import sys
import types

import numpy as np
import pytest

from gaea_jax.benchmarks import load_table
from gaea_jax.benchmarks.export import check_new, export_nats, open_nats, write_table
from gaea_jax.errors import UsageError
from gaea_jax.spaces.nas_bench_201 import EDGES, NAS_BENCH_201, OPERATIONS

CELLS = [str(genotype) for genotype in NAS_BENCH_201.genotypes()]
DATASETS = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
# What the package says of each: cifar10 is trained on all training images, so that none are left to validate on.
ACCURACIES = {
    "cifar10-valid": ("train", "valid", "test"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "valid", "test", "valtest"),
    "ImageNet16-120": ("train", "valid", "test", "valtest"),
}
SPLITS = ("train", "valid", "test", "valtest")


def code(index, dataset, split, hp, drawn=False):
    """A percent of its own for all that can be asked for, apart by 1e-4: ten times what float32 resolves."""
    kind = ((DATASETS.index(dataset) * 4 + SPLITS.index(split)) * 2 + ("12", "200").index(hp)) * 2 + drawn
    return (index * 64 + kind) * 1e-4


class Nats:
    """The methods of ``nats_bench.NATStopology`` with their defaults, on cells in an order of its own."""

    def __init__(self, archs=CELLS):
        self.meta_archs = [archs[i] for i in np.random.default_rng(0).permutation(len(archs))]
        self.archstr2index = {arch: index for index, arch in enumerate(self.meta_archs)}

    def __len__(self):
        return len(self.meta_archs)

    def query_index_by_arch(self, arch):
        return self.archstr2index.get(arch, -1)

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        assert iepoch is None and isinstance(hp, str)
        return {f"{split}-accuracy": code(index, dataset, split, hp, is_random) for split in ACCURACIES[dataset]}


@pytest.fixture(scope="module")
def nats():
    return Nats()


@pytest.fixture(scope="module")
def exported(nats):
    return export_nats(nats)


@pytest.mark.parametrize(
    ("dataset", "metric", "source", "split"),
    [
        ("cifar10", "valid", "cifar10-valid", "valid"),
        ("cifar10", "test", "cifar10", "test"),
        ("cifar100", "valid", "cifar100", "valid"),
        ("cifar100", "test", "cifar100", "test"),
        ("ImageNet16-120", "valid", "ImageNet16-120", "valid"),
        ("ImageNet16-120", "test", "ImageNet16-120", "test"),
    ],
)
@pytest.mark.parametrize("epochs", [200, 12])
def test_every_row_of_a_column_is_the_mean_of_that_cell_split_and_schedule(
    nats, exported, tmp_path, dataset, metric, source, split, epochs
):
    write_table(exported, tmp_path / "new" / "table.npz")
    table = load_table(tmp_path / "new" / "table.npz")
    expected = [code(nats.meta_archs.index(cell), source, split, str(epochs)) for cell in CELLS[::97]]
    found = [table.query(NAS_BENCH_201.parse(cell), dataset, metric, epochs) for cell in CELLS[::97]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    column = table.columns[dataset, metric, epochs]
    everything = [code(nats.archstr2index[cell], source, split, str(epochs)) for cell in CELLS]
    np.testing.assert_allclose(column, everything, rtol=0, atol=2e-5)
    assert len(table.columns) == 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.npz"]


def test_rows_are_numbered_in_base_five_and_know_their_number_in_the_benchmark(nats, exported):
    row = int("301423", 5)
    assert exported["ops"][row].tolist() == [3, 0, 1, 4, 2, 3]
    names = [OPERATIONS[digit] for digit in (3, 0, 1, 4, 2, 3)]
    arch = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names)
    assert nats.meta_archs[exported["nb201_index"][row]] == arch
    assert exported["edges"].tolist() == [f"{node}<-{source}" for node, source in EDGES]


def sizes():
    return [f"{8 * (i // 125 + 1)}:{i // 25 % 5}:{i // 5 % 5}:{i % 5}:8" for i in range(len(CELLS))]


@pytest.mark.parametrize("archs", [sizes(), CELLS[1:], [*CELLS, "|one~0|"]], ids=["size space", "too few", "too many"])
def test_another_search_space_is_refused(archs):
    with pytest.raises(UsageError, match=r"does not hold the 15,625 cells of the topology search space") as caught:
        export_nats(Nats(archs))
    assert caught.value.argument == "file"


@pytest.mark.parametrize("error", [KeyError("200"), ValueError("no hp"), AssertionError("invalid data path")])
def test_a_number_that_is_not_there_is_named(error):
    class Holed(Nats):
        def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
            if (index, dataset, hp) == (self.archstr2index[CELLS[3]], "cifar100", "12"):
                raise error
            return super().get_more_info(index, dataset, iepoch, hp, is_random)

    with pytest.raises(UsageError) as caught:
        export_nats(Holed())
    assert caught.value.argument == "file"
    assert f"lacks the valid-accuracy of {CELLS[3]} on cifar100 after 12 epochs" in caught.value.sentence


def test_a_file_is_opened_as_one_and_a_folder_cell_by_cell(tmp_path, monkeypatch):
    def create(*arguments, **options):
        asked.append((arguments, options))
        return "api"

    asked = []
    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=create))
    (tmp_path / "file").touch()
    for path, fast in ((tmp_path / "file", False), (tmp_path, True)):
        assert open_nats(path) == "api"
        assert asked.pop() == ((str(path), "tss"), {"fast_mode": fast, "verbose": False})


def test_what_cannot_be_opened_is_refused_with_a_reason(tmp_path, monkeypatch):
    def create(*arguments, **options):
        raise OSError("Invalid data stream")

    with pytest.raises(UsageError, match=r"file: .*nowhere does not exist; wants NATS-tss"):
        open_nats(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    with pytest.raises(UsageError, match=r"file: needs the package nats_bench .*pip install nats_bench"):
        open_nats(tmp_path)
    monkeypatch.setitem(sys.modules, "nats_bench", types.SimpleNamespace(create=create))
    with pytest.raises(
        UsageError, match=r"file: .* cannot be read by nats_bench .*Invalid data stream.*; wants NATS-tss"
    ):
        open_nats(tmp_path)


def test_nothing_is_overwritten_and_what_is_no_table_is_not_written(tmp_path, exported):
    path = tmp_path / "table.npz"
    broken = {**exported, "c10_test_200": np.full_like(exported["c10_test_200"], np.nan)}
    with pytest.raises(UsageError, match="c10_test_200 wants percents"):
        write_table(broken, path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("kept")
    for refused in (lambda: check_new(path), lambda: write_table(exported, path)):
        with pytest.raises(UsageError, match="exists and is not overwritten") as caught:
            refused()
        assert caught.value.argument == "out"
    assert path.read_text() == "kept"
    with pytest.raises(UsageError, match=r"out: .* cannot be written"):
        write_table(exported, path / "table.npz")
