from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from gaea_jax.nets import Mixture, network, supernet
from gaea_jax.nets.darts.operations import Kind, Operation
from gaea_jax.spaces import get_space
from gaea_jax.spaces.darts import KNOWN
from gaea_jax.spaces.published import GAEA_PC_DARTS_CIFAR10

SPACE = get_space("darts")


def shapes(net: nn.Module, side: int, *arguments: Any) -> dict[str, tuple[int, ...]]:
    """Shape of one image after each module of the outermost level."""

    def seen(key: jax.Array) -> Any:
        images = jnp.zeros((1, side, side, 3))
        options = {"train": False, "capture_intermediates": True, "mutable": True}
        return net.init_with_output(key, images, *arguments, **options)[1]["intermediates"]

    found = jax.eval_shape(seen, jax.random.key(0))
    return {name: jax.tree.leaves(found[name]["__call__"])[0].shape[1:] for name in found if name != "__call__"}


def cells(found: dict[str, tuple[int, ...]], count: int) -> list[tuple[int, int]]:
    """Channels and side after each cell."""
    after = [found[f"cell_{number}"] for number in range(count)]
    assert all(height == width for height, width, _ in after) and f"cell_{count}" not in found
    return [(channels, side) for side, _, channels in after]


def test_shapes_of_the_network_for_cifar() -> None:
    net = network(SPACE, GAEA_PC_DARTS_CIFAR10, channels=36, cells=20, num_classes=10, auxiliary=True)
    found = shapes(net, 32)
    assert found["stem"] == (32, 32, 108)
    assert cells(found, 20) == [(144, 32)] * 6 + [(288, 16)] * 7 + [(576, 8)] * 7
    assert found["classifier"] == found["auxiliary"] == (10,)


def test_the_auxiliary_head_follows_the_cell_after_the_second_reduction() -> None:
    net = network(SPACE, GAEA_PC_DARTS_CIFAR10, channels=4, cells=20, num_classes=10, auxiliary=True)
    found: dict[str, Any] = jax.eval_shape(
        lambda key: net.init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"], jax.random.key(0)
    )
    kernel = found["auxiliary"]["conv_0"]["kernel"]
    assert kernel.shape == (1, 1, 64, 128)


def test_shapes_of_the_supernet() -> None:
    uniform = Mixture({name: choice.uniform() for name, choice in SPACE.choices.items()})
    found = shapes(supernet(SPACE, channels=16, cells=8, num_classes=10), 32, uniform)
    assert found["stem"] == (32, 32, 48)
    assert cells(found, 8) == [(64, 32)] * 2 + [(128, 16)] * 3 + [(256, 8)] * 3


def test_shapes_of_the_network_for_imagenet() -> None:
    net = network(SPACE, GAEA_PC_DARTS_CIFAR10, channels=48, cells=14, num_classes=1000, stem="imagenet")
    found = shapes(net, 224)
    assert (found["stem_0"], found["stem_1"]) == ((56, 56, 48), (28, 28, 48))
    assert cells(found, 14) == [(192, 28)] * 4 + [(384, 14)] * 5 + [(768, 7)] * 5


@pytest.mark.parametrize(
    ("operation", "stride", "in_a_supernet", "in_a_network"),
    [
        ("sep_conv_3x3", 1, 800, 3384),
        ("sep_conv_5x5", 1, 1312, 4536),
        ("dil_conv_3x3", 1, 400, 1692),
        ("dil_conv_5x5", 1, 656, 2268),
        ("sep_3x3", 1, 800, 3384),
        ("sep_5x5", 1, 1312, 4536),
        ("sep_7x7", 1, 2080, 6264),
        ("conv_3x1_1x3", 1, 1536, 7848),
        ("conv 1x1", 1, 256, 1368),
        ("conv 3x3", 2, 2304, 11736),
        ("max_pool_7x7", 2, 0, 0),
        ("skip_connect", 2, 256, 1368),
        ("skip_connect", 1, 0, 0),
        ("max_pool_3x3", 1, 0, 0),
        ("avg_pool_3x3", 2, 0, 0),
    ],
)
def test_parameters_of_an_operation(operation: str, stride: int, in_a_supernet: int, in_a_network: int) -> None:
    assert operation in KNOWN
    for features, affine, expected in ((16, False, in_a_supernet), (36, True, in_a_network)):
        kind = Kind(operation, features, stride, affine=affine, norm_pools=not affine, dtype=jnp.float32)
        images = jnp.zeros((1, 8, 8, features))
        variables = jax.eval_shape(
            lambda key, kind=kind, x=images: Operation(kind, 1).init(key, x, True), jax.random.key(0)
        )
        assert sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {}))) == expected
