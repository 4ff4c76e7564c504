import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaea_jax.errors import UsageError
from gaea_jax.spaces.grammar import FIRST_OPERATION, OUTPUT, CellGraph
from gaea_jax.spaces.nas_bench_101 import (
    GRAMMAR,
    MAX_EDGES,
    MAX_NODES,
    OPERATIONS,
    Genotype,
    bits,
    enumerate_cells,
    parse,
    pruned,
)

C3, C1, POOL = OPERATIONS
CELL = Genotype(((0, 1), (0, 2), (1, 3), (2, 3)), (C3, POOL))


def test_the_space_has_as_many_graphs_as_the_paper_counts() -> None:
    found = enumerate_cells()
    assert np.bincount(found.nodes).tolist() == [0, 0, 1, 2, 10, 121, 1545, 4793]
    assert len(found.cells) == 1_293_208
    ends = np.append(found.offsets[1:], len(found.cells))
    by_nodes = [
        np.unique(np.concatenate([found.cells[a:b] for a, b in zip(found.offsets[here], ends[here], strict=True)])).size
        for here in (found.nodes == nodes for nodes in range(2, MAX_NODES + 1))
    ]
    assert by_nodes == [1, 6, 84, 2_441, 62_010, 359_082]
    assert sum(by_nodes) == 423_624


@pytest.mark.parametrize(
    ("nodes", "first", "expected"),
    [(6, 5, [81, 1_260, 6_909, 19_701, 34_059]), (7, 6, [243, 6_264, 58_563, 294_012])],
)
def test_the_largest_cells_have_as_many_edges_as_counted(nodes: int, first: int, expected: list[int]) -> None:
    found = enumerate_cells()
    edges = np.bitwise_count(found.dags)
    sizes = 3 ** (found.nodes - 2)
    of_cell = np.repeat(edges, sizes)
    of_size = np.repeat(found.nodes == nodes, sizes)
    counts = [np.unique(found.cells[of_size & (of_cell == number)]).size for number in range(first, 10)]
    assert counts == expected


@pytest.mark.data
def test_hashes_are_the_benchmarks(shared_data: pathlib.Path) -> None:
    table = np.load(shared_data / "nas_bench_101" / "nb101_sample.npz")
    for row in range(0, len(table["hash"]), 100):
        nodes = int(table["num_vertices"][row])
        inner = [OPERATIONS[number] for number in table["ops"][row, : nodes - 2]]
        cell = pruned(table["adjacency"][row, :nodes, :nodes], inner)
        assert cell.hash() == table["hash"][row].tobytes().hex()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4792), st.integers(0, 242), st.permutations(range(5)))
def test_hash_and_number_do_not_depend_on_the_order_of_nodes(dag: int, labelling: int, order: list[int]) -> None:
    found = enumerate_cells()
    graph = np.flatnonzero(found.nodes == MAX_NODES)[dag]
    matrix = _matrix(found.dags[graph])
    labels = np.array(np.unravel_index(labelling, (3,) * 5))
    nodes = np.array([0, *(1 + np.array(order)), 6])
    moved, moved_labels = matrix[np.ix_(nodes, nodes)], labels[order]
    if np.tril(moved).any():
        return  # not a topological order
    place = int(np.flatnonzero(found.dags == bits(moved))[0])
    number = np.ravel_multi_index(tuple(moved_labels), (3,) * 5)
    assert found.cells[found.offsets[place] + number] == found.cells[found.offsets[graph] + labelling]
    names = [pruned(m, [OPERATIONS[i] for i in ls]).hash() for m, ls in ((matrix, labels), (moved, moved_labels))]
    assert names[0] == names[1]


def _matrix(number: int) -> np.ndarray:
    matrix = np.zeros((MAX_NODES, MAX_NODES), bool)
    for bit, (source, node) in enumerate(itertools.combinations(range(MAX_NODES), 2)):
        matrix[source, node] = number >> bit & 1
    return matrix


def test_what_lies_on_no_path_is_pruned() -> None:
    matrix = np.zeros((5, 5), int)
    for source, node in ((0, 1), (1, 4), (0, 2), (3, 4)):  # 2 leads nowhere, nothing leads to 3
        matrix[source, node] = 1
    assert pruned(matrix, [C3, C1, POOL]) == Genotype(((0, 1), (1, 2)), (C3,))


@pytest.mark.parametrize(
    ("matrix", "operations", "sentence"),
    [
        (np.zeros((3, 3)), [C3], "no path from input to output"),
        (np.tril(np.ones((3, 3))), [C3], "upper triangular"),
        (np.full((2, 2), 0.5), [], "upper triangular"),
        (np.triu(np.ones((3, 3)), 1), [], "for 2 nodes"),
        (np.triu(np.ones((5, 5)), 1), [C3] * 3, "5 nodes and 10 edges"),
        (np.eye(8, k=1), [C3] * 6, "8 nodes and 7 edges"),
        (np.eye(3, k=1), ["conv"], "'conv' is unknown; known are conv3x3-bn-relu"),
    ],
)
def test_what_is_no_cell_is_refused(matrix: np.ndarray, operations: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match="genotype: .*" + sentence):
        pruned(matrix, operations)


def test_a_genotype_has_no_nodes_that_do_not_count() -> None:
    with pytest.raises(UsageError, match="see `pruned`"):
        Genotype(((0, 1), (0, 2)), (C3,))
    with pytest.raises(UsageError, match="wants its edges sorted"):
        Genotype(((1, 2), (0, 1)), (C3,))


def test_text_can_be_read_again() -> None:
    assert parse(str(CELL)) == CELL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"space": "darts", "edges": [[0, 1]], "operations": []}',
        str(CELL)[:-1],
        '{"space": "nas_bench_101", "edges": [[0, 1]], "operations": null}',
        '{"space": "nas_bench_101", "edges": [[0, Infinity]], "operations": []}',
        '{"space": "nas_bench_101", "edges": [[0.9, 1.7]], "operations": []}',
        '{"space": "nas_bench_101", "edges": ["01"], "operations": []}',
    ],
)
def test_a_wrong_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"genotype: .* is not of the form"):
        parse(text)


def test_the_grammar_writes_every_graph_once_and_no_other() -> None:
    """Follows every decision that the masks allow, with one operation standing for all three."""
    labels_of = jax.jit(jax.vmap(GRAMMAR.label_mask, (0, None)))
    edges_of = jax.jit(jax.vmap(GRAMMAR.edge_mask, (0, None, None)))
    graphs = jax.tree.map(lambda leaf: np.asarray(leaf)[None], GRAMMAR.start())
    for node in range(1, MAX_NODES):
        allowed = np.asarray(labels_of(graphs, node))
        assert (allowed[:, FIRST_OPERATION : FIRST_OPERATION + 3].all(axis=1) == allowed[:, FIRST_OPERATION]).all()
        grown = []
        for label in (OUTPUT, FIRST_OPERATION, GRAMMAR.none):
            here = jax.tree.map(lambda leaf, label=label, allowed=allowed: leaf[allowed[:, label]].copy(), graphs)
            here.labels[:, node] = label
            grown.append(here)
        graphs = _joined(grown)
        for source in range(node):
            allowed = np.asarray(edges_of(graphs, node, source))
            assert allowed.any(axis=1).all()
            grown = []
            for bit in (False, True):
                here = jax.tree.map(lambda leaf, bit=bit, allowed=allowed: leaf[allowed[:, int(bit)]].copy(), graphs)
                here.adjacency[:, source, node] = bit
                grown.append(here)
            graphs = _joined(grown)
    written = bits(graphs.adjacency)
    assert len(written) == len(set(written.tolist())) == 6_472
    assert set(written.tolist()) == set(enumerate_cells().dags.tolist())
    assert graphs.adjacency.sum(axis=(1, 2)).max() == MAX_EDGES


def _joined(graphs: list[CellGraph]) -> CellGraph:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *graphs)


def test_a_prefix_has_what_was_written_before() -> None:
    labels = jnp.array([0, 2, 3, 1, 5, 5, 5])
    adjacency = jnp.zeros((7, 7), bool).at[jnp.array([0, 0, 1, 2]), jnp.array([1, 2, 3, 3])].set(True)
    graph = CellGraph(labels, adjacency)
    before_label = graph.prefix(2, -1, GRAMMAR.none)
    assert before_label.labels.tolist() == [0, 2, 5, 5, 5, 5, 5]
    assert jnp.argwhere(before_label.adjacency).tolist() == [[0, 1]]
    before_edge = graph.prefix(3, 2, GRAMMAR.none)
    assert before_edge.labels.tolist() == [0, 2, 3, 1, 5, 5, 5]
    assert jnp.argwhere(before_edge.adjacency).tolist() == [[0, 1], [0, 2], [1, 3]]
