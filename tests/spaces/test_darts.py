import collections
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaea_jax.errors import UsageError
from gaea_jax.spaces import Graph, derive, get_space
from gaea_jax.spaces.darts import DARTS, DARTS_NOZERO, DARTS_SPACE, EDGES, NASP_SPACE, NODES, OPERATIONS, Genotype
from gaea_jax.spaces.published import GAEA_PC_DARTS_CIFAR10, NASP, PUBLISHED

SPACES = [DARTS_SPACE, DARTS_NOZERO]
NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = OPERATIONS
CELLS = ("normal", "reduce")
CELL = (((MAX, 0), (MAX, 1)),) * 4
EMPTY = ((),) * 4

Pairs = tuple[tuple[str, int], ...]
Genotypes = Callable[..., st.SearchStrategy[Genotype]]


def entries(genotype: Genotype) -> Iterator[tuple[str, int, tuple[str, int]]]:
    for cell in CELLS:
        for node, pairs in zip(NODES, getattr(genotype, cell), strict=True):
            yield from ((cell, node, pair) for pair in pairs)


def derived(table: np.ndarray, edges: np.ndarray | None = None) -> tuple[Pairs, ...]:
    """The rule of the space, one node after the other, in Python."""
    rows = [dict(zip(OPERATIONS[-table.shape[1] :], row, strict=True)) for row in table.tolist()]
    first, cell = 0, []
    for node in NODES:
        found = []
        for source in range(node):
            weights = {name: weight for name, weight in rows[first + source].items() if name != NONE}
            best = max(weights, key=weights.__getitem__)  # the first of equal ones
            factor = 1.0 if edges is None else float(edges[first + source])
            found.append((-weights[best] * factor, source, best))
        cell.append(tuple((operation, source) for _, source, operation in sorted(found)[:2]))
        first += node
    return tuple(cell)


def test_get_space() -> None:
    assert get_space("darts") is DARTS_SPACE and get_space("darts_nozero") is DARTS_NOZERO
    assert len({DARTS_SPACE, DARTS_NOZERO, DARTS("darts", OPERATIONS)}) == 2
    with pytest.raises(
        UsageError, match=r"^space: 'DARTS' is unknown; known are nas_bench_201, .*, darts, darts_nozero"
    ):
        get_space("DARTS")


@pytest.mark.parametrize(("space", "entries"), [(DARTS_SPACE, 2 * 14 * 8), (DARTS_NOZERO, 2 * 14 * 7)])
def test_the_choices_are_operations_of_edges_and_optional_inputs_of_nodes(space: DARTS, entries: int) -> None:
    choices = space.choices
    assert list(choices) == ["normal", "reduce", "normal_edges", "reduce_edges"]
    operations = [choice for choice in choices.values() if choice.kind == "op"]
    inputs = [choice for choice in choices.values() if choice.kind == "input"]
    assert [choice.optional for choice in choices.values()] == [False, False, True, True]
    assert sum(math.prod(choice.shape) for choice in operations) == entries
    assert [choice.shape for choice in inputs] == [(14,)] * 2
    for choice in operations:
        assert choice.options == space.operations and choice.segments is None
        assert choice.rows[:4] == ("2<-0", "2<-1", "3<-0", "3<-1") and choice.rows[-1] == "5<-4"
    for choice in inputs:
        assert choice.options == operations[0].rows and choice.rows == ("2", "3", "4", "5")
        assert choice.segments == (0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3)
        chex.assert_trees_all_close(choice.uniform(), np.repeat([1 / 2, 1 / 3, 1 / 4, 1 / 5], [2, 3, 4, 5]))


@pytest.mark.parametrize("space", SPACES)
def test_the_count_is_that_of_the_spec(space: DARTS) -> None:
    assert space.count() == 1_037_664_180**2


def test_the_cells_of_nasp_have_operations_of_their_own() -> None:
    assert NASP_SPACE.count() == 3_019_898_880 * 70_312_500
    assert len({*NASP_SPACE.options("normal"), *NASP_SPACE.options("reduce")}) == 12
    shapes = {name: choice.shape for name, choice in NASP_SPACE.choices.items() if choice.kind == "op"}
    assert shapes == {"normal": (14, 8), "reduce": (14, 5)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        genotype = NASP_SPACE.random(rng)
        for cell in CELLS:
            assert {name for name, _ in itertools.chain(*getattr(genotype, cell))} <= {*NASP_SPACE.options(cell)}
        child = NASP_SPACE.mutate(genotype, rng)
        for one in (genotype, child):
            assert NASP_SPACE.decode(NASP_SPACE.encode(one)) == NASP_SPACE.parse(str(one)) == one
    nodes = ((("conv 3x3", 0),), (), (), ())
    assert str(Genotype(nodes, EMPTY)).startswith('{"space": "nasp", ')
    assert NASP_SPACE.parse(str(Genotype(nodes, EMPTY))) == Genotype(nodes, EMPTY)
    with pytest.raises(UsageError, match=r"^genotype: reduce, node 2, input 0: operation 'conv 3x3' is not in nasp"):
        NASP_SPACE.check(Genotype(EMPTY, nodes))
    with pytest.raises(UsageError, match=r"^reduce_operations: wants two or more of"):
        DARTS("mine", (SKIP, SEP3), (SKIP,))


def test_the_count_is_that_of_all_cells_of_a_small_space() -> None:
    space = DARTS("mine", (NONE, SKIP, SEP3))
    found = [
        len(list(itertools.product(itertools.combinations(range(node), 2), itertools.product((SKIP, SEP3), repeat=2))))
        for node in NODES
    ]
    assert space.count() == math.prod(found) ** 2


@pytest.mark.parametrize("operations", [(SEP3,), (NONE, SEP3), (SEP3, SEP3), (SKIP, SEP3, NONE), (SKIP, "conv"), ()])
def test_a_space_of_wrong_operations_is_refused(operations: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"^operations: wants two or more of max_pool_3x3, "):
        DARTS("mine", operations)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_selections_are_read_back(genotypes: Genotypes, data: st.DataObject) -> None:
    any_number, two = data.draw(genotypes(several=False)), data.draw(genotypes(several=False, least=2, most=2))
    for space in SPACES:
        for genotype in (any_number, two):
            selection = space.encode(genotype)
            assert list(selection) == ["normal", "reduce"]
            for table in selection.values():
                chex.assert_shape(table, (14, len(space.operations)))
                chex.assert_type(table, bool)
            assert space.decode(selection) == genotype
            assert sum(int(table.sum()) for table in selection.values()) == len(list(entries(genotype)))
        chex.assert_trees_all_equal(space.select(space.encode(two)), space.encode(two))


def test_the_rows_of_a_selection_are_edges_and_its_columns_operations() -> None:
    genotype = Genotype((((SEP3, 1),), (), (), ((DIL5, 4), (MAX, 0))), EMPTY)
    selection = DARTS_SPACE.encode(genotype)
    assert np.argwhere(selection["normal"]).tolist() == [[1, 4], [9, 1], [13, 7]]
    assert not selection["reduce"].any()
    assert np.argwhere(DARTS_NOZERO.encode(genotype)["normal"]).tolist() == [[1, 3], [9, 0], [13, 6]]


@pytest.mark.parametrize("space", SPACES)
def test_several_operations_on_an_edge_are_selected(space: DARTS) -> None:
    genotype = Genotype(CELL, (*CELL[:2], ((MAX, 3), (DIL5, 3)), CELL[3]))
    assert space.parse(str(genotype)) == genotype
    assert space.decode(space.encode(genotype)) == genotype


@pytest.mark.parametrize(
    "call",
    [
        lambda space, genotype: space.parse(str(genotype)),
        lambda space, genotype: space.encode(genotype),
        lambda space, genotype: space.mutate(genotype, np.random.default_rng(0)),
    ],
)
def test_operations_of_another_space_are_refused(call) -> None:
    space = DARTS("small", (SKIP, SEP3))
    with pytest.raises(UsageError, match=r"^genotype: normal, node 2, input 0: operation 'max_pool_3x3' is not in"):
        call(space, Genotype(CELL, CELL))
    with pytest.raises(UsageError, match=r"^genotype: wants cells of small, got 'eight'"):
        space.check("eight")  # type: ignore[arg-type]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("edges", [False, True])
def test_uniform_weights_give_the_first_of_all(space: DARTS, edges: bool) -> None:
    uniform = {name: choice.uniform() for name, choice in space.choices.items() if edges or not choice.optional}
    assert derive(space, uniform) == Genotype(CELL, CELL)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("edges", [False, True])
def test_the_derivation_of_the_spec(space: DARTS, edges: bool) -> None:
    edge, operation = np.indices((14, 8))
    table = ((5 * edge + 3 * operation) % 11 + 1)[:, -len(space.operations) :] / 100
    weights = {"normal": table, "reduce": table[::-1]}
    if edges:
        weights |= {name: choice.uniform() for name, choice in space.choices.items() if choice.optional}
    genotype = derive(space, weights)
    assert genotype.normal == (
        ((DIL5, 0), (SEP5, 1)),
        ((AVG, 1), (SEP3, 2)),
        ((DIL3, 0), (MAX, 3)),
        ((SKIP, 0), (SEP5, 1)),
    )
    assert genotype == Genotype(genotype.normal, derived(table[::-1]))


@pytest.mark.parametrize("space", SPACES)
def test_select_under_jit_is_the_rule_with_all_its_ties(space: DARTS) -> None:
    rng = np.random.default_rng(0)
    choices = space.choices
    weights = {
        name: rng.integers(0 if choice.kind == "op" else 1, 4, size=(60, *choice.shape)).astype(np.float32)
        for name, choice in choices.items()
    }
    select = jax.jit(jax.vmap(space.select))
    for tables in (weights, {cell: weights[cell] for cell in CELLS}, {k: weights[k] for k in (*CELLS, "reduce_edges")}):
        selections = select(tables)
        assert list(selections) == ["normal", "reduce"]
        for index in range(60):
            expected = [
                derived(tables[cell][index], tables[f"{cell}_edges"][index] if f"{cell}_edges" in tables else None)
                for cell in CELLS
            ]
            found = {cell: np.asarray(table[index]) for cell, table in selections.items()}
            assert space.decode(found) == Genotype(*expected)
            assert all(table.sum() == 8 for table in found.values())


def test_none_has_a_share_but_no_say() -> None:
    table = np.random.default_rng(1).dirichlet(np.ones(8), size=14)
    weights = {"normal": table, "reduce": table}
    genotype = derive(DARTS_SPACE, weights)
    heavy = table.copy()
    heavy[::2, 0] = 100.0
    assert derive(DARTS_SPACE, {"normal": heavy, "reduce": heavy}) == genotype
    without = {cell: table[:, 1:] for cell in CELLS}
    assert derive(DARTS_NOZERO, without) == genotype
    # Though the best operation of edge 3<-0 has the largest share of what is not none, the others have more weight.
    table = np.full((14, 8), 0.125)
    table[2] = [0.93, 0.07, 0, 0, 0, 0, 0, 0]
    assert derive(DARTS_SPACE, {"normal": table, "reduce": table}).normal[1] == ((MAX, 1), (MAX, 2))


def test_the_weight_of_an_edge_decides_between_edges_but_not_between_operations() -> None:
    table = np.full((14, 8), 0.1)
    table[:, 4] = 0.3
    table[5:9, 7] = [0.4, 0.35, 0.35, 0.35]
    weights = {"normal": table, "reduce": table}
    assert derive(DARTS_SPACE, weights).normal[2] == ((DIL5, 0), (DIL5, 1))
    edges = np.ones(14)
    edges[5:9] = [0.1, 0.2, 0.3, 0.4]
    genotype = derive(DARTS_SPACE, {**weights, "normal_edges": edges})
    assert genotype.normal[2] == ((DIL5, 2), (DIL5, 3))
    assert genotype.reduce == derive(DARTS_SPACE, weights).reduce


def test_select_reads_low_precision() -> None:
    table = np.zeros((14, 7))
    table[:, 2] = [1, 0.5, 0.25, 0.5, 1, 0, 0.25, 0.5, 1, 1e-30, 1e30, 0, 0, 1]
    expected = (((SKIP, 0), (SKIP, 1)), ((SKIP, 1), (SKIP, 2)), ((SKIP, 2), (SKIP, 3)), ((SKIP, 1), (SKIP, 4)))
    for dtype in (jnp.float32, jnp.bfloat16):
        weights = {cell: jnp.asarray(table, dtype) for cell in CELLS}
        assert derive(DARTS_NOZERO, weights).normal == expected


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({}, "got {}"),
        ({"normal": np.ones((14, 8))}, "'reduce': (14, 8)}, got {'normal': (14, 8)}"),
        ({"normal": np.ones((14, 8)), "reduce": np.ones((14, 7))}, "'reduce': (14, 7)}"),
        ({cell: np.ones((14, 8)) for cell in (*CELLS, "cell")}, "'cell': (14, 8)}"),
        ({**{cell: np.ones((14, 8)) for cell in CELLS}, "normal_edges": np.ones(13)}, "'normal_edges': (14,)}, got"),
        ({cell: np.full((14, 8), np.nan) for cell in CELLS}, "table 'normal' has NaN"),
    ],
)
def test_wrong_weights_are_refused(weights: Mapping[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        derive(DARTS_SPACE, weights)
    assert caught.value.argument == "weights" and sentence in caught.value.sentence


def test_wrong_selections_are_refused() -> None:
    blank = np.zeros((14, 8), bool)
    none = blank.copy()
    none[13, 0] = True
    for table in (none, np.zeros((14, 8)), np.zeros((14, 7), bool)):
        with pytest.raises(UsageError, match=r"^selection: wants .*reduce"):
            DARTS_SPACE.decode({"normal": blank, "reduce": table})
    with pytest.raises(UsageError, match=r"^selection: wants .*'normal_edges'"):
        DARTS_SPACE.decode({"normal": blank, "reduce": blank, "normal_edges": np.ones(14, bool)})


def assert_uniform(counts: collections.Counter, classes: int) -> None:
    """All classes occur, with a chi-square within five deviations of its mean."""
    expected = counts.total() / classes
    assert len(counts) == classes and expected > 20
    square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert square <= classes - 1 + 5 * math.sqrt(2 * (classes - 1))


def test_random_draws_uniformly() -> None:
    rng = np.random.default_rng(1)
    drawn = [DARTS_SPACE.random(rng) for _ in range(4_000)]
    assert_uniform(collections.Counter(genotype.normal[1] for genotype in drawn), 3 * 49)
    for cell in CELLS:
        for node, operations in zip(NODES, (49, 7, 7, 7), strict=True):
            pairs = [getattr(genotype, cell)[NODES.index(node)] for genotype in drawn]
            inputs = collections.Counter(tuple(source for _, source in pair) for pair in pairs)
            assert_uniform(inputs, math.comb(node, 2))
            names = [pair[0][0] if operations == 7 else (pair[0][0], pair[1][0]) for pair in pairs]
            assert_uniform(collections.Counter(names), operations)
    # The cells, and the nodes of a cell, do not follow one another.
    assert_uniform(collections.Counter((g.normal[3][1][0], g.reduce[0][0][0]) for g in drawn), 49)
    assert DARTS_SPACE.random(np.random.default_rng(7)) == DARTS_NOZERO.random(np.random.default_rng(7))


def test_mutations_reach_every_neighbour_and_change_one_choice() -> None:
    rng = np.random.default_rng(2)
    found = collections.Counter()
    for _ in range(3_000):
        child = DARTS_NOZERO.mutate(GAEA_PC_DARTS_CIFAR10, rng)
        old, new = set(entries(GAEA_PC_DARTS_CIFAR10)), set(entries(child))
        [(cell, node, (operation, source))] = old - new
        [(other_cell, other_node, (other_operation, other_source))] = new - old
        assert (cell, node) == (other_cell, other_node)
        assert (operation == other_operation) != (source == other_source)
        assert len({taken for _, taken in getattr(child, cell)[NODES.index(node)]}) == 2
        found[child] += 1
    # 16 pairs with 6 other operations each, and of each cell 2, 4 and 6 other inputs in nodes 3, 4 and 5.
    assert_uniform(found, 16 * 6 + 2 * (2 + 4 + 6))


def test_mutations_of_other_numbers_of_inputs() -> None:
    rng = np.random.default_rng(3)
    full = Genotype(EMPTY, ((), (), (), tuple((SKIP, source) for source in range(5))))
    children = {DARTS_SPACE.mutate(full, rng) for _ in range(600)}
    # Without another input to go to, only operations change.
    assert len(children) == 5 * 6
    assert all([source for _, source in child.reduce[3]] == [0, 1, 2, 3, 4] for child in children)
    both = Genotype((((SKIP, 0), (SEP3, 0)), (), (), ()), EMPTY)
    children = {DARTS_SPACE.mutate(both, rng) for _ in range(600)}
    assert len(children) == 2 * 5 + 2 and all(len(child.normal[0]) == 2 for child in children)
    with pytest.raises(UsageError, match=r"^genotype: has no operation to change"):
        DARTS_SPACE.mutate(Genotype(EMPTY, EMPTY), rng)


@pytest.mark.parametrize("genotype", PUBLISHED.values(), ids=PUBLISHED)
def test_published_cells_are_of_their_spaces(genotype: Genotype) -> None:
    assert get_space(genotype.space) is (NASP_SPACE if genotype is NASP else DARTS_SPACE)
    for space in (NASP_SPACE,) if genotype is NASP else SPACES:
        assert space.parse(str(genotype)) == genotype == space.decode(space.encode(genotype))


def test_graphs_have_the_inputs_the_nodes_and_the_output() -> None:
    genotype = Genotype((((SEP3, 1), (SKIP, 0)), (), (), ((DIL5, 4), (MAX, 2), (AVG, 2))), EMPTY)
    graphs = DARTS_SPACE.graphs(genotype)
    joins = ((2, 6, ""), (3, 6, ""), (4, 6, ""), (5, 6, ""))
    names = ("c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "c_{k}")
    cell = ((0, 2, SKIP), (1, 2, SEP3), (2, 5, MAX), (2, 5, AVG), (4, 5, DIL5))
    assert graphs == {"normal": Graph(names, cell + joins), "reduce": Graph(names, joins)}


def test_edges_are_those_of_the_operations_tables() -> None:
    rows = DARTS_SPACE.choices["normal"].rows
    assert tuple(tuple(map(int, row.split("<-"))) for row in rows) == EDGES
