import jax
import jax.numpy as jnp
import pytest

from gaea_jax.nets import Count, Mixture, count, network, supernet
from gaea_jax.spaces import get_space
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, Genotype

C1, C3, SKIP, POOL, NONE = "nor_conv_1x1", "nor_conv_3x3", "skip_connect", "avg_pool_3x3", "none"
TARGETS = [(10, 32), (100, 32), (120, 16)]

# Parameters and millions of multiply-adds for each of TARGETS, of the benchmark's networks (C=16, N=5).
SKIPS = [(73_306, 7.78305), (79_156, 7.7889), (80_456, 1.9534)]
NETWORKS = {
    (POOL, C1, SKIP, C1, SKIP, SKIP): [(129_306, 15.64737), (135_156, 15.65322), (136_456, 3.91948)],
    (C3, C3, POOL, SKIP, C3, SKIP): [(802_426, 113.95137), (808_276, 113.95722), (809_576, 28.49548)],
    (C3,) * 6: [(1_531_546, 220.11969), (1_537_396, 220.12554), (1_538_696, 55.03756)],
    (C1,) * 6: [(241_306, 31.37601), (247_156, 31.38186), (248_456, 7.85164)],
    (SKIP,) * 6: SKIPS,
    (POOL,) * 6: SKIPS,
    (NONE,) * 6: SKIPS,
    (C3, C3, C3, SKIP, C3, C3): [(1_288_506, 184.73025), (1_294_356, 184.7361), (1_295_656, 46.1902)],
}
SUPERNETS = {16: [1_686_106, 1_691_956, 1_693_256], 24: [3_792_514, 3_801_244, 3_803_184]}


@pytest.mark.parametrize("cell", NETWORKS)
def test_networks_of_the_benchmark(cell: tuple[str, ...]) -> None:
    for (num_classes, side), (parameters, millions) in zip(TARGETS, NETWORKS[cell], strict=True):
        net = network(NAS_BENCH_201, Genotype(cell), channels=16, cells=5, num_classes=num_classes)
        assert count(net, (side, side, 3)) == Count(parameters, round(millions * 1e6) - num_classes, num_classes)


@pytest.mark.parametrize("space_name", ["nas_bench_201", "nas_bench_201_nozero"])
@pytest.mark.parametrize("channels", SUPERNETS)
def test_supernets(channels: int, space_name: str) -> None:
    space = get_space(space_name)
    mixture = Mixture({"cell": jax.ShapeDtypeStruct(space.choices["cell"].shape, jnp.float32)})
    for (num_classes, side), parameters in zip(TARGETS, SUPERNETS[channels], strict=True):
        net = supernet(space, channels=channels, cells=5, num_classes=num_classes)
        assert count(net, (side, side, 3), mixture).parameters == parameters


def test_a_supernet_does_the_work_of_both_convolutions_on_every_edge() -> None:
    mixture = Mixture({"cell": jnp.full((6, 5), 0.2)})
    size = {"channels": 4, "cells": 2, "num_classes": 3}
    mixed = count(supernet(NAS_BENCH_201, **size), (8, 8, 1), mixture).multiply_adds
    small, large, rest = (
        count(network(NAS_BENCH_201, Genotype((operation,) * 6), **size), (8, 8, 1)).multiply_adds
        for operation in (C1, C3, SKIP)
    )
    assert mixed == small + large - rest


def test_by_hand() -> None:
    net = network(NAS_BENCH_201, Genotype((SKIP,) * 6), channels=2, cells=1, num_classes=3)
    stem = 9 * 1 * 2
    first, second = 9 * 2 * 4 + 9 * 4 * 4 + 2 * 4, 9 * 4 * 8 + 9 * 8 * 8 + 4 * 8
    norms = 2 * (2 + 2 * 4 + 2 * 8 + 8)
    assert count(net, (8, 4, 1)) == Count(
        stem + first + second + norms + 8 * 3 + 3, 32 * stem + 8 * first + 2 * second + 8 * 3, 3
    )
