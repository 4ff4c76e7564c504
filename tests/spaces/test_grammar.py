import jax.numpy as jnp
import numpy as np

from gaea_jax.spaces.grammar import operations_on_edges
from gaea_jax.spaces.nas_bench_201 import OPERATIONS


def test_nodes_read_what_the_edges_read() -> None:
    grammar = operations_on_edges(OPERATIONS)
    inputs = [np.flatnonzero(column).tolist() for column in np.asarray(grammar.start().adjacency).T]
    assert inputs == [[], [0], [0], [1], [0], [1], [2, 3], [4, 5, 6]]
    assert grammar.labels == ("input", "output", *OPERATIONS, "-")
    assert (grammar.nodes, grammar.steps, grammar.none) == (8, 6, 7)


def test_every_operation_may_come_next_and_the_edges_are_fixed() -> None:
    grammar = operations_on_edges(OPERATIONS)
    start = grammar.start()
    for node in range(1, 7):
        assert grammar.label_mask(start, jnp.int32(node)).tolist() == [False] * 2 + [True] * 5 + [False]
        there = [grammar.edge_mask(start, jnp.int32(node), jnp.int32(source)).tolist() for source in range(7)]
        assert there == [[not bit, bit] for bit in start.adjacency[:7, node].tolist()]


def test_a_grammar_is_one_object_so_that_programs_are_compiled_once() -> None:
    assert operations_on_edges(OPERATIONS) is operations_on_edges(OPERATIONS)
