import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gaea_jax.benchmarks import Benchmark, Signal, load_benchmark
from gaea_jax.errors import UsageError
from gaea_jax.spaces import nas_bench_101
from gaea_jax.spaces.grammar import FIRST_OPERATION
from gaea_jax.spaces.nas_bench_201 import (
    EDGES,
    NAS_BENCH_201,
    NAS_BENCH_201_NOZERO,
    OPERATIONS,
    TRANSNAS_MICRO,
    canonical,
)


@pytest.fixture
def costly(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    """The table with parameters: a million for each 3x3 convolution."""
    path = tmp_path / "costly.npz"
    np.savez(path, **arrays, params_m=(arrays["ops"] == 3).sum(axis=1).astype(np.float32))
    return path


@pytest.fixture
def benchmark_201(costly: pathlib.Path) -> Benchmark:
    return load_benchmark("nas_bench_201", costly, Signal(identity="cell"))


@pytest.fixture
def transnas(tmp_path: pathlib.Path) -> dict[str, np.ndarray]:
    digits = np.stack(np.unravel_index(np.arange(4**6), (4,) * 6), axis=-1)
    return {
        "ops": digits.astype(np.uint8),
        "op_names": np.array(OPERATIONS[:4]),
        "tasks": np.array(["jigsaw", "room_layout"]),
        "edges": np.array([f"{node}<-{source}" for node, source in EDGES]),
        "val": np.stack([digits.sum(axis=1), -digits.sum(axis=1)], axis=1).astype(np.float32),
    }


@pytest.fixture
def sample_101() -> dict[str, np.ndarray]:
    """A table of five cells: two chains, a skip, and the chain of two in both orders of its operations."""
    cells = [((0, 1),), ((0, 1), (1, 2)), ((0, 1), (0, 2), (1, 2)), ((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 2), (2, 3))]
    inner: list[list[int]] = [[], [0], [0], [0, 2], [2, 0]]
    adjacency = np.zeros((5, 7, 7), np.uint8)
    for row, edges in enumerate(cells):
        for source, node in edges:
            adjacency[row, source, node] = 1
    return {
        "num_vertices": np.array([2 + len(numbers) for numbers in inner], np.uint8),
        "adjacency": adjacency,
        "ops": np.array([numbers + [255] * (5 - len(numbers)) for numbers in inner], np.uint8),
        "epochs": np.array([4, 108]),
        "valid_acc": np.linspace(0.1, 0.9, 10, dtype=np.float32).reshape(5, 2),
        "params": np.arange(1, 6, dtype=np.int32) * 1_000_000,
    }


def saved(folder: pathlib.Path, arrays: dict[str, Any]) -> pathlib.Path:
    path = folder / "other.npz"
    np.savez(path, **arrays)
    return path


def test_rows_are_the_cells_of_the_table(benchmark_201: Benchmark) -> None:
    candidates = benchmark_201.candidates
    assert candidates.rows == 15_625
    assert [NAS_BENCH_201.parse(benchmark_201.text(row)) for row in (0, 77, 15_624)] == [
        list(NAS_BENCH_201.genotypes())[row] for row in (0, 77, 15_624)
    ]
    assert [benchmark_201.row(benchmark_201.text(row)) for row in (0, 77, 15_624)] == [0, 77, 15_624]
    ids = jnp.arange(candidates.rows)
    assert (jax.jit(candidates.index)(candidates.graph(ids)) == ids).all()


def test_neighbours_differ_in_one_operation(benchmark_201: Benchmark, arrays: dict[str, np.ndarray]) -> None:
    neighbours = np.asarray(benchmark_201.candidates.neighbours)
    digits = arrays["ops"].astype(int)
    assert neighbours.shape == (15_625, 24)
    assert ((digits[neighbours] != digits[:, None]).sum(axis=-1) == 1).all()
    assert (np.sort(neighbours, axis=1)[:, 1:] != np.sort(neighbours, axis=1)[:, :-1]).all()


def test_cells_that_compute_the_same_are_one_query(costly: pathlib.Path) -> None:
    candidates = load_benchmark("nas_bench_201", costly, Signal(identity="class")).candidates
    assert len(np.unique(candidates.identity)) == int(candidates.identity.max()) + 1 == 6_466


def test_the_space_without_none_reads_its_rows_of_the_table(costly: pathlib.Path, benchmark_201: Benchmark) -> None:
    benchmark = load_benchmark("nas_bench_201_nozero", costly, Signal(identity="cell"))
    assert benchmark.candidates.rows == 4_096
    for row in (0, 1_000, 4_095):
        whole = int(NAS_BENCH_201.index(NAS_BENCH_201.encode(NAS_BENCH_201_NOZERO.parse(benchmark.text(row)))))
        assert benchmark.scores[row] == benchmark_201.scores[whole]
        assert benchmark.reported["test"][row] == benchmark_201.reported["test"][whole]
    ids = jnp.arange(4_096)
    assert (benchmark.candidates.index(benchmark.candidates.graph(ids)) == ids).all()


def test_the_search_sees_the_column_that_is_asked_for(costly: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    benchmark = load_benchmark("nas_bench_201", costly, Signal("cifar100", "test", 12))
    np.testing.assert_array_equal(benchmark.scores, arrays["c100_test_12"])
    np.testing.assert_array_equal(benchmark.reported["valid"], arrays["c100_valid_200"])


def test_a_single_training_may_be_seen(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    trainings = np.stack([arrays["c10_valid_200"] + 1, arrays["c10_valid_200"] - 1], axis=1)
    trainings[7, 1] = np.nan
    path = saved(tmp_path, {**arrays, "c10_valid_200_seeds": trainings})
    first = load_benchmark("nas_bench_201", path, Signal(training=0))
    np.testing.assert_array_equal(first.scores, trainings[:, 0])
    assert first.candidates.feasible.all()
    second = load_benchmark("nas_bench_201", path, Signal(training=1))
    assert np.flatnonzero(~second.candidates.feasible).tolist() == [7]
    assert second.ranks()[np.asarray(second.candidates.feasible)].max() <= 15_624
    for signal, sentence in (
        (Signal(training=2), "training: must be 0 to 1 for c10_valid_200_seeds, not 2"),
        (Signal("cifar100", training=0), "training: needs the array c100_valid_200_seeds"),
        (Signal("svhn", training=0), "dataset: 'svhn' is not in the table"),
    ):
        with pytest.raises(UsageError, match=sentence):
            load_benchmark("nas_bench_201", path, signal)
    with pytest.raises(UsageError, match="training: is for NAS-Bench-201"):
        load_benchmark("transnas_micro", path, Signal(training=0))


def test_ranks_count_what_is_better(benchmark_201: Benchmark) -> None:
    ranks = benchmark_201.ranks()
    some = np.random.default_rng(0).integers(15_625, size=20)
    assert [int((benchmark_201.scores > benchmark_201.scores[row]).sum()) + 1 for row in some] == ranks[some].tolist()


def test_a_limit_leaves_what_is_cheap(benchmark_201: Benchmark) -> None:
    limited = benchmark_201.limited("params_m", 2)
    feasible = np.asarray(limited.candidates.feasible)
    np.testing.assert_array_equal(feasible, benchmark_201.costs["params_m"] <= 2)
    assert limited.ranks()[feasible].min() == 1
    with pytest.raises(UsageError, match="at_most: nothing costs -1 or less; the least is 0"):
        benchmark_201.limited("params_m", -1)
    with pytest.raises(UsageError, match="cost: 'latency' is unknown; known are params_m"):
        benchmark_201.limited("latency", 1)


def test_several_objectives_weigh_the_cost(benchmark_201: Benchmark) -> None:
    dearer = benchmark_201._replace(costs={"macs": 1 + benchmark_201.costs["params_m"]})
    weighed = dearer.weighed("macs", 2.0)
    np.testing.assert_allclose(weighed.scores, dearer.scores * (dearer.costs["macs"] / 2) ** -0.07, rtol=1e-6)
    with pytest.raises(UsageError, match="cost: params_m is 0 for some"):
        benchmark_201.weighed("params_m", 2.0)
    for target in (0.0, float("inf")):
        with pytest.raises(UsageError, match="target: must be a number of more than 0"):
            dearer.weighed("macs", target)


def test_latencies_become_costs(costly: pathlib.Path, tmp_path: pathlib.Path) -> None:
    latency = saved(tmp_path, {"latency_ms": np.ones((15_625, 2), np.float32), "devices": np.array(["a", "b"])})
    assert set(load_benchmark("nas_bench_201", costly, Signal(), latency).costs) == {"params_m", "a", "b"}
    wrong = saved(tmp_path, {"latency_ms": np.ones((15_625, 3), np.float32), "devices": np.array(["a", "b"])})
    with pytest.raises(UsageError, match=r"latency: .* is \(15625, 3\); wants finite numbers \(15625, 2\)"):
        load_benchmark("nas_bench_201", costly, Signal(), wrong)
    with pytest.raises(UsageError, match=r"latency: .* lacks the arrays"):
        load_benchmark("nas_bench_201", costly, Signal(), costly)
    with pytest.raises(UsageError, match="latency: is for NAS-Bench-201"):
        load_benchmark("transnas_micro", costly, Signal(), latency)


def test_transnas_is_read_by_task(tmp_path: pathlib.Path, transnas: dict[str, np.ndarray]) -> None:
    benchmark = load_benchmark("transnas_micro", saved(tmp_path, transnas), Signal("room_layout", identity="cell"))
    np.testing.assert_array_equal(benchmark.scores, transnas["val"][:, 1])
    assert benchmark.candidates.rows == TRANSNAS_MICRO.count() == 4_096
    assert benchmark.candidates.neighbours is not None
    assert benchmark.candidates.neighbours.shape == (4_096, 18)
    assert TRANSNAS_MICRO.parse(benchmark.text(4_095)).cell == ("nor_conv_3x3",) * 6


@pytest.mark.parametrize(
    ("signal", "changed", "sentence"),
    [
        (Signal("segment"), {}, "dataset: 'segment' is not in the table, which has jigsaw, room_layout"),
        (Signal("jigsaw", "test"), {}, "metric: 'test' is not in the table"),
        (Signal("jigsaw", identity="class"), {}, "identity: 'class' is not known here; known are cell"),
        (Signal("jigsaw", epochs=12), {}, "epochs: cannot be chosen for transnas_micro, not even 12"),
        (Signal("jigsaw"), {"op_names": np.array(OPERATIONS[1:])}, "table: .* is of another space or order"),
        (Signal("jigsaw"), {"edges": np.array(["1<-0"] * 6)}, "table: .* is of another space or order; edges wants"),
        (Signal("jigsaw"), {"val": np.full((4_096, 2), np.nan, np.float32)}, "table: .* 4096 finite numbers"),
        (Signal("jigsaw"), {"val": np.ones(4_096, np.float32)}, "table: .* wants 4096 rows and a column a task"),
    ],
)
def test_a_wrong_transnas_is_refused(
    tmp_path: pathlib.Path,
    transnas: dict[str, np.ndarray],
    signal: Signal,
    changed: dict[str, np.ndarray],
    sentence: str,
) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_benchmark("transnas_micro", saved(tmp_path, {**transnas, **changed}), signal)


def test_a_sample_of_nas_bench_101_knows_its_own_cells(
    tmp_path: pathlib.Path, sample_101: dict[str, np.ndarray]
) -> None:
    benchmark = load_benchmark("nas_bench_101", saved(tmp_path, sample_101), Signal(epochs=4))
    candidates = benchmark.candidates
    np.testing.assert_allclose(benchmark.scores, 100 * sample_101["valid_acc"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(benchmark.reported["valid"], 100 * sample_101["valid_acc"][:, 1], rtol=1e-6)
    graphs = candidates.graph(jnp.arange(5))
    assert candidates.index(graphs).tolist() == [0, 1, 2, 3, 4]
    other = graphs._replace(labels=jnp.where(graphs.labels == FIRST_OPERATION, FIRST_OPERATION + 1, graphs.labels))
    assert candidates.index(other).tolist() == [0, -1, -1, -1, -1]
    assert nas_bench_101.parse(benchmark.text(2)).operations == ("conv3x3-bn-relu",)
    assert candidates.neighbours is None
    assert [benchmark.row(benchmark.text(row)) for row in range(5)] == [0, 1, 2, 3, 4]
    absent = nas_bench_101.Genotype(((0, 1), (1, 2)), ("maxpool3x3",))
    with pytest.raises(UsageError, match=r"genotype: .* is not in the table, which has 5 cells"):
        benchmark.row(str(absent))
    assert benchmark.costs["params_m"].tolist() == [1, 2, 3, 4, 5]


def test_isomorphic_graphs_are_one_row(tmp_path: pathlib.Path, sample_101: dict[str, np.ndarray]) -> None:
    """Two nodes side by side, in both orders of their operations."""
    adjacency = np.zeros((1, 7, 7), np.uint8)
    adjacency[0, [0, 0, 1, 2], [1, 2, 3, 3]] = 1
    alone = {
        "num_vertices": np.array([4], np.uint8),
        "adjacency": adjacency,
        "ops": np.array([[0, 1, 255, 255, 255]], np.uint8),
        "valid_acc": np.full((1, 2), 0.5, np.float32),
        "params": np.ones(1, np.int32),
    }
    candidates = load_benchmark("nas_bench_101", saved(tmp_path, {**sample_101, **alone}), Signal(epochs=4)).candidates
    graph = candidates.graph(jnp.arange(1))
    assert candidates.index(graph).tolist() == [0]
    turned = graph._replace(labels=graph.labels.at[0, 1:3].set(graph.labels[0, 2:0:-1]))
    assert candidates.index(turned).tolist() == [0]


@pytest.mark.parametrize(
    ("signal", "changed", "sentence"),
    [
        (Signal(epochs=12), {}, "epochs: 12 is not in the table, which has 4, 108"),
        (Signal("cifar100", epochs=4), {}, "dataset: 'cifar100' is not in the table, which has cifar10"),
        (Signal(metric="test", epochs=4), {}, "metric: 'test' is not in the table, which has valid"),
        (Signal(epochs=4), {"ops": np.zeros((5, 5), np.uint8)}, "table: .* has a cell twice"),
        (Signal(epochs=4), {"adjacency": np.zeros((5, 7, 7), np.uint8)}, "table: .* no cells of NAS-Bench-101"),
        (Signal(epochs=4), {"adjacency": np.zeros((5, 6, 6), np.uint8)}, "table: .* adjacency is uint8"),
        (Signal(epochs=4), {"ops": np.full((5, 5), 3, np.uint8)}, "table: .* with operations 0 to 2"),
        (Signal(epochs=4), {"num_vertices": np.full(5, 8, np.uint8)}, "table: .* wants cells of 2 to 7 nodes"),
        (Signal(epochs=4), {"num_vertices": np.full(5, 1, np.uint8)}, "table: .* wants cells of 2 to 7 nodes"),
        (Signal(epochs=4), {"valid_acc": np.full((5, 2), 91.0)}, "table: .* valid_acc wants .* from 0 to 1"),
        (Signal(epochs=4), {"valid_acc": np.full((5, 2), "high")}, "table: .* valid_acc wants .* from 0 to 1"),
        (Signal(epochs=4), {"params": np.full(5, "many")}, "table: .* params wants 5 finite numbers"),
        (Signal(epochs=4), {"epochs": np.array(108)}, "table: .* epochs is int64 .* wants whole numbers"),
        (Signal(epochs=4), {"num_vertices": np.array(2)}, "table: .* num_vertices is int64"),
        (Signal(epochs=4), {"num_vertices": np.zeros(0, int)}, "table: .* num_vertices is int64"),
        (Signal(epochs=4), {"op_names": np.array(["maxpool3x3"])}, "table: .* op_names wants conv3x3-bn-relu, conv1x1"),
        (Signal(epochs=4), {"adjacency": np.ones((5, 7, 7), int)}, "table: .* edges of nodes that num_vertices"),
        (Signal(epochs=4, identity="class"), {}, "identity: 'class' is not known here; known are cell"),
    ],
)
def test_a_wrong_sample_is_refused(
    tmp_path: pathlib.Path,
    sample_101: dict[str, np.ndarray],
    signal: Signal,
    changed: dict[str, np.ndarray],
    sentence: str,
) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_benchmark("nas_bench_101", saved(tmp_path, {**sample_101, **changed}), signal)


def test_a_space_without_a_benchmark_is_refused(costly: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="space: 'darts' has no benchmark; those with one are nas_bench_201,"):
        load_benchmark("darts", costly, Signal())


@pytest.mark.data
def test_the_measured_tables_have_the_published_optima(shared_data: pathlib.Path) -> None:
    path = shared_data / "nas_bench_201" / "nb201.npz"
    for dataset, valid, test in (("cifar10", 91.6067, 94.3733), ("cifar100", 73.4933, 73.5133)):
        benchmark = load_benchmark("nas_bench_201", path, Signal(dataset))
        best = benchmark.scores.argmax()
        assert benchmark.scores[best] == pytest.approx(valid, abs=1e-3)
        assert benchmark.reported["test"].max() == pytest.approx(test, abs=1e-3)
    jigsaw = load_benchmark(
        "transnas_micro", shared_data / "nas_bench_suite_zero" / "tnb101_micro.npz", Signal("jigsaw")
    )
    assert jigsaw.scores.max() == pytest.approx(95.37, abs=5e-3)


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "correlation", "optima", "top", "ideal"),
    [
        ("cifar10", 0.984, (13, 18), (94.373, 94.373, 94.363, 94.343, 94.307), 94.134),
        ("cifar100", 0.993, (26, 25), (73.513, 73.480, 73.220, 73.167, 73.160), 72.678),
        ("ImageNet16-120", 0.995, (38, 37), (47.311, 47.167, 47.083, 46.933, 46.850), 46.322),
    ],
)
def test_the_measured_landscapes_are_those_known(
    shared_data: pathlib.Path,
    dataset: str,
    correlation: float,
    optima: tuple[int, int],
    top: tuple[float, ...],
    ideal: float,
) -> None:
    """Spearman's correlation of validation and test, cells that no neighbour is better than, the best test accuracies,
    and the mean of these over the 25 best by validation, which a truth set of 25 has at best."""
    benchmark = load_benchmark("nas_bench_201", shared_data / "nas_bench_201" / "nb201.npz", Signal(dataset))
    valid, test = benchmark.reported["valid"], benchmark.reported["test"]
    assert scipy.stats.spearmanr(valid, test).statistic == pytest.approx(correlation, abs=1e-3)
    assert benchmark.candidates.neighbours is not None
    around = np.asarray(benchmark.candidates.neighbours)
    assert tuple(int((score[:, None] >= score[around]).all(axis=1).sum()) for score in (valid, test)) == optima
    np.testing.assert_allclose(np.sort(test)[:-6:-1], top, atol=6e-4)
    # Equal accuracies at the 25th place leave some choice.
    assert test[np.argsort(-valid)[:25]].mean() == pytest.approx(ideal, abs=0.1)
    best = valid.argmax()
    assert test[best] == pytest.approx(46.20 if dataset == "ImageNet16-120" else test.max(), abs=1e-2)


@pytest.mark.data
def test_cells_that_skip_with_weights_differ(shared_data: pathlib.Path) -> None:
    """Why a class of NAS-Bench-201 is none of TransNAS-Bench-101: its members are points apart."""
    path = shared_data / "nas_bench_suite_zero" / "tnb101_micro.npz"
    benchmark = load_benchmark("transnas_micro", path, Signal("jigsaw"))
    assert len(np.unique(benchmark.candidates.identity)) == 4_096
    names = np.array([canonical(genotype) for genotype in TRANSNAS_MICRO.genotypes()])
    best = benchmark.scores.argmax()
    assert np.ptp(benchmark.scores[names == names[best]]) > 1


@pytest.mark.data
def test_every_cell_of_the_measured_sample_is_found_by_its_graph(shared_data: pathlib.Path) -> None:
    benchmark = load_benchmark("nas_bench_101", shared_data / "nas_bench_101" / "nb101_sample.npz", Signal(epochs=108))
    ids = jnp.arange(benchmark.candidates.rows)
    assert (jax.jit(benchmark.candidates.index)(benchmark.candidates.graph(ids)) == ids).all()
