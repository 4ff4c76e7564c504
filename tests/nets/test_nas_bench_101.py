"""The stand-alone networks of NAS-Bench-101: their sizes are those of the benchmark, and cells are what they say."""

import itertools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.errors import UsageError
from gaea_jax.nets import count, network
from gaea_jax.nets.lowering import max_pool
from gaea_jax.nets.nas_bench_101 import Cell, NASBench101Network, node_channels
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_1, SPACE_2
from gaea_jax.spaces.nas_bench_1shot1 import Genotype as ChoiceGenotype
from gaea_jax.spaces.nas_bench_101 import OPERATIONS, Genotype

C3, C1, POOL = OPERATIONS


def parameters(cell: Genotype) -> int:
    """Those of the network of the benchmark."""
    net = NASBench101Network(cell, channels=128, cells=3, num_classes=10)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Genotype(((0, 1),), ()), 882_570),
        (Genotype(((0, 1), (0, 2), (1, 2)), (C1,)), 2_793_866),
        (
            Genotype(((0, 1), (0, 4), (0, 5), (1, 2), (2, 3), (2, 6), (3, 5), (4, 5), (5, 6)), (C3, POOL, C3, C3, C1)),
            8_555_530,  # which the benchmark's own documentation shows
        ),
    ],
)
def test_parameters_are_those_of_the_benchmark(cell: Genotype, expected: int) -> None:
    assert parameters(cell) == expected


@pytest.mark.data
def test_parameters_are_those_of_a_table(shared_data: pathlib.Path) -> None:
    with np.load(shared_data / "nas_bench_101" / "nb101_sample.npz") as table:
        arrays = {name: table[name] for name in ("num_vertices", "adjacency", "ops", "params")}
    for row in np.random.default_rng(0).integers(len(arrays["params"]), size=20):
        nodes = arrays["num_vertices"][row]
        edges = tuple(map(tuple, np.argwhere(arrays["adjacency"][row]).tolist()))
        operations = tuple(OPERATIONS[number] for number in arrays["ops"][row, : nodes - 2])
        assert parameters(Genotype(edges, operations)) == arrays["params"][row]


def test_channels_are_shared_by_what_the_output_reads() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = SPACE_2.random(rng).cell().matrix()
        nodes = range(1, len(matrix) - 1)
        if not matrix[1:, -1].any():
            continue
        channels = dict(zip(nodes, node_channels(matrix, 17), strict=True))
        assert sum(channels[node] for node in nodes if matrix[node, -1]) == 17
        for source, reader in itertools.product(nodes, nodes):
            assert not matrix[source, reader] or channels[source] - channels[reader] in (0, 1)


def test_a_cell_adds_what_nodes_read_and_joins_what_the_output_reads(draw: Callable) -> None:
    """Node 1 has three channels, of which node 2 reads two, and the output reads both nodes and the input."""
    cell = Cell(Genotype(((0, 1), (0, 3), (1, 2), (1, 3), (2, 3)), (POOL, POOL)), 5, jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 4)), jnp.float32)
    variables = draw(cell, x)
    assert set(variables["params"]) == {"input_1", "input_3"}

    def projected(name: str) -> jax.Array:
        params, running = variables["params"][name]["linear"], variables["batch_stats"][name]["linear"]["norm"]
        y = x @ params["conv"]["kernel"][0, 0]
        y = (y - running["mean"]) / jnp.sqrt(running["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        return jnp.maximum(y, 0)

    first = max_pool(projected("input_1"), 3, 1)
    second = max_pool(first[..., :2], 3, 1)
    expected = jnp.concatenate([first, second], axis=-1) + projected("input_3")
    np.testing.assert_allclose(cell.apply(variables, x, train=False), expected, atol=1e-5)


def test_a_genotype_with_loose_ends_has_the_network_of_its_cell() -> None:
    loose = ChoiceGenotype((C3, C1, POOL, C1), ((0,), (0, 1), (0, 1), (0, 1), (0, 1)))
    size = {"channels": 8, "cells": 1, "num_classes": 10}
    expected = count(NASBench101Network(Genotype(((0, 1), (0, 2), (1, 2)), (C3,)), **size), (16, 16, 1))
    assert count(network(SPACE_1, loose, **size), (16, 16, 1)) == expected


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("channels", {"channels": 1}),
        ("auxiliary_weight", {"auxiliary": True}),
        ("stem", {"stem": "imagenet"}),
        ("remat", {"remat": True}),
        ("share_features", {"shared": True}),
    ],
)
def test_what_the_network_cannot_have_is_refused(flag: str, options: dict) -> None:
    genotype = ChoiceGenotype((C3, C1, POOL, C1), ((0,), (0, 1), (0, 1), (0, 1), (1, 2)))
    with pytest.raises(UsageError, match=f"^{flag}: "):
        network(SPACE_1, genotype, **{"channels": 8, "cells": 1, "num_classes": 10, **options})


def test_another_space_and_odd_images_are_refused() -> None:
    genotype = SPACE_2.random(np.random.default_rng(0))
    with pytest.raises(UsageError, match="genotype: is not of nas_bench_1shot1_1"):
        network(SPACE_1, genotype, channels=8, cells=1, num_classes=10)
    net = network(SPACE_2, genotype, channels=8, cells=1, num_classes=10)
    with pytest.raises(UsageError, match="dataset: wants image batches"):
        net.init(jax.random.key(0), jnp.zeros((1, 30, 30, 3)), train=False)
    with pytest.raises(UsageError, match="drop_path: must be 0"):
        net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True, drop_path=0.2)
