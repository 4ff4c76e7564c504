import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.spaces import derive, get_space, nas_bench_101
from gaea_jax.spaces.nas_bench_1shot1 import OPERATIONS, SPACE_1, SPACE_2, SPACE_3, Genotype, NASBench1Shot1

SPACES = (SPACE_1, SPACE_2, SPACE_3)
POOL, C3, C1 = OPERATIONS
CELL = Genotype((C3, POOL, C1, C3), ((0,), (0, 1), (1, 2), (0, 3), (2, 4)))


def test_the_three_spaces_are_known_by_name() -> None:
    assert [get_space(f"nas_bench_1shot1_{number}") for number in (1, 2, 3)] == list(SPACES)


@pytest.mark.parametrize(
    ("space", "tables", "connectivities", "count", "whole", "graphs", "cells"),
    [
        (SPACE_1, (12, 7, 5), 180, 14_580, 38, 48, 2_685),
        (SPACE_2, (12, 9, 5), 360, 29_160, 138, 164, 7_773),
        (SPACE_3, (15, 14, 6), 5_400, 1_312_200, 445, 596, 55_854),
    ],
)
def test_the_spaces_are_as_large_as_counted(
    space: NASBench1Shot1,
    tables: tuple[int, ...],
    connectivities: int,
    count: int,
    whole: int,
    graphs: int,
    cells: int,
) -> None:
    """Released definitions: architecture scalars 24, 26 and 35; genotypes with loose ends, without, and as cells."""
    assert tuple(int(np.prod(choice.shape)) for choice in space.choices.values()) == tables
    pooled = [Genotype((POOL,) * space.blocks, parents).cell() for parents in space.connectivities()]
    assert (len(pooled), space.count()) == (connectivities, count)
    assert sum(len(cell.operations) == space.blocks for cell in pooled) == whole
    assert len({cell.edges for cell in pooled}) == graphs
    found = space.cells()
    assert len(found) == cells
    if space is not SPACE_3:
        assert len({cell.hash() for cell in found}) == cells
        assert {nas_bench_101.parse(str(cell)) for cell in found} == set(found)


@pytest.mark.parametrize("space", [SPACE_1, SPACE_2])
def test_every_genotype_is_one_of_the_cells(space: NASBench1Shot1) -> None:
    hashes = {cell.hash() for cell in space.cells()}
    genotypes = list(space.genotypes())
    assert len(set(genotypes)) == space.count()
    assert {genotype.cell().hash() for genotype in genotypes[::7]} <= hashes


@pytest.mark.parametrize("space", SPACES)
def test_the_forms_of_a_genotype_are_each_others_inverse(space: NASBench1Shot1) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        genotype = space.random(rng)
        assert genotype.space == space.name
        assert space.parse(f"  {genotype}\n") == genotype
        selection = space.encode(genotype)
        chex.assert_trees_all_equal_shapes(selection, {name: jnp.ones(c.shape) for name, c in space.choices.items()})
        assert space.decode(selection) == genotype
        chex.assert_trees_all_equal(space.select(selection), selection)


def test_a_node_reads_the_heaviest_that_it_may() -> None:
    weights = {
        "operations": jnp.array([[0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0], [0.2, 0.4, 0.4]]),
        "inputs": jnp.array([0.1, 0.5, 0.4, 0.4, 0.1, 0.1, 0.4]),
        "output": jnp.array([[0.1, 0.3, 0.2, 0.1, 0.3]]),
    }
    expected = Genotype((C3, C1, POOL, C3), ((0,), (0, 1), (1, 2), (0, 3), (1, 4)))
    assert derive(SPACE_1, weights) == expected
    chex.assert_trees_all_equal(jax.jit(SPACE_1.select)(weights), SPACE_1.encode(expected))


def test_uniform_weights_keep_the_first() -> None:
    uniform = {name: choice.uniform() for name, choice in SPACE_3.choices.items()}
    assert derive(SPACE_3, uniform) == Genotype((POOL,) * 5, ((0,), (0,), (0,), (0, 1), (0, 1), (0, 1)))


def test_loose_ends_are_pruned() -> None:
    """Block 4 is read by nothing, and 3 only by it; what is left are three operations side by side and in a row."""
    genotype = Genotype((C3, POOL, C1, C3), ((0,), (0, 1), (0, 1), (0, 3), (1, 2)))
    assert genotype.cell() == nas_bench_101.Genotype(((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)), (C3, POOL))
    graph = SPACE_1.graphs(genotype)["cell"]
    assert graph.nodes == ("input", "conv\n3x3", "maxpool\n3x3", "output")
    assert graph.edges == ((0, 1, ""), (0, 2, ""), (1, 2, ""), (1, 3, ""), (2, 3, ""))


def test_mutations_reach_every_choice() -> None:
    rng = np.random.default_rng(0)
    seen = {SPACE_1.mutate(CELL, rng) for _ in range(2_000)}
    # Two other operations for four blocks; of nodes that read 2 of n another n - 2 for each of both.
    assert len(seen) == 4 * 2 + 2 * 1 + 2 * 2 + 2 * 3
    for child in seen:
        before, after = (np.concatenate([np.ravel(t) for t in SPACE_1.encode(g).values()]) for g in (CELL, child))
        assert (before != after).sum() == 2


def test_random_genotypes_are_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = [SPACE_2.random(rng) for _ in range(3_600)]
    counts = np.array([sum(g.parents == way for g in drawn) for way in SPACE_2.connectivities()])
    assert counts.sum() == 3_600
    # Chi-squared of 359 degrees of freedom: 359 ± 27.
    assert ((counts - 10) ** 2 / 10).sum() < 359 + 5 * 27


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not of the form"),
        ("[]", "is not of the form"),
        (
            str(CELL).replace("nas_bench_1shot1_1", "darts"),
            "says that it is of 'darts'; wants one of",
        ),
        (str(CELL).replace("nas_bench_1shot1_1", "nas_bench_1shot1_2"), "says that it is of 'nas_bench_1shot1_2'"),
        (str(CELL)[:-1] + ', "more": 1}', "is not of the form"),
        (str(CELL).replace(POOL, "maxpool"), "operation 'maxpool' is unknown; known are maxpool3x3, conv3x3-bn-relu"),
        (str(CELL).replace("[0, 3]", "[0, 4]"), "block 4 reads .* wants nodes 0 to 3 in order"),
        (str(CELL).replace("[0, 3]", "[3, 0]"), "block 4 reads"),
        (str(CELL).replace("[0, 3]", '["0", 3]'), "is not of the form|block 4 reads"),
        (str(CELL).replace(", [2, 4]", ""), "wants what 5 nodes read, the last the output; has 4"),
        (str(CELL).replace("[2, 4]", "[2]"), r"nas_bench_1shot1_1, whose 4 blocks and output read \(1, 2, 2, 2, 2\)"),
        (json.dumps({"space": "nas_bench_1shot1_1", "operations": None, "parents": []}), "is not of the form"),
    ],
)
def test_a_wrong_text_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"genotype: .*{sentence}"):
        SPACE_1.parse(text)


def test_what_is_of_another_space_is_refused() -> None:
    with pytest.raises(UsageError, match="genotype: is not of nas_bench_1shot1_2"):
        SPACE_2.encode(CELL)
    with pytest.raises(UsageError, match="genotype: wants a cell of nas_bench_1shot1_1"):
        SPACE_1.check(CELL.cell())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weights: wants tables of shapes"):
        SPACE_1.select({"operations": jnp.ones((4, 3))})
    selection = SPACE_1.encode(CELL)
    for name, wrong in itertools.product(selection, (jnp.ones_like, jnp.zeros_like, lambda t: t.astype(float))):
        with pytest.raises(UsageError, match="selection: wants bool tables with an operation a block"):
            SPACE_1.decode({**selection, name: wrong(selection[name])})
