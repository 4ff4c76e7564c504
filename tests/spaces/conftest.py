"""Cells of the DARTS space, drawn by Hypothesis."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from gaea_jax.spaces.darts import NODES, OPERATIONS, Genotype


@pytest.fixture(scope="session")
def genotypes() -> Callable[..., st.SearchStrategy[Genotype]]:
    def genotypes(several: bool, least: int = 0, most: int | None = None) -> st.SearchStrategy[Genotype]:
        """Cells of nodes with so many pairs, with several operations on an edge or not."""

        def node(number: int) -> st.SearchStrategy[tuple[tuple[str, int], ...]]:
            pair = st.tuples(st.sampled_from(OPERATIONS[1:]), st.integers(0, number - 1))
            differ = None if several else (lambda pair: pair[1])
            return st.lists(pair, min_size=least, max_size=most, unique=several, unique_by=differ).map(tuple)

        cell = st.tuples(*map(node, NODES))
        return st.builds(Genotype, cell, cell)

    return genotypes
