"""What the tests of black-box search share: a small space of cells with a score for each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.benchmarks import Benchmark
from gaea_jax.benchmarks.base import edge_candidates
from gaea_jax.spaces.grammar import CellGraph, Grammar, operations_on_edges
from gaea_jax.spaces.nas_bench_101 import GRAMMAR, MAX_NODES


@pytest.fixture(scope="module", autouse=True)
def polish_nothing(compile_little: None) -> None:
    """The networks are small, and what trains them is compiled for each test."""


@pytest.fixture(scope="session")
def small() -> Benchmark:
    """All 729 cells of three operations; a cell scores what its operations add, and a little by its row."""
    digits = np.array(list(itertools.product(range(3), repeat=6)))
    weights = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0])
    scores = (np.array([0.0, 2.0, 1.0])[digits] * weights).sum(axis=1) + np.arange(729) * 1e-4
    candidates = edge_candidates(operations_on_edges(("a", "b", "c")), digits)
    return Benchmark("small", candidates, scores.astype(np.float32), {"valid": scores.astype(np.float32)}, {}, str, int)


@pytest.fixture(scope="session", params=["edges", "dags"])
def grammar(request: pytest.FixtureRequest) -> Grammar:
    """That of NAS-Bench-201, and that of NAS-Bench-101."""
    return operations_on_edges(("a", "b", "c")) if request.param == "edges" else GRAMMAR


@pytest.fixture(scope="session")
def dags() -> CellGraph:
    """Two cells of NAS-Bench-101, of four nodes and of three, padded to seven."""
    labels = jnp.array([[0, 2, 3, 1, 5, 5, 5], [0, 4, 1, 5, 5, 5, 5]])
    adjacency = np.zeros((2, MAX_NODES, MAX_NODES), bool)
    adjacency[0, [0, 0, 1, 2], [1, 2, 3, 3]] = True
    adjacency[1, [0, 0, 1], [1, 2, 2]] = True
    return CellGraph(labels, jnp.asarray(adjacency))


def shaken(variables: dict, scale: float = 0.5) -> dict:
    """Parameters with noise, since layers that start at 0 hide what is before them."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, noisy)
