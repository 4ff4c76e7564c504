from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gaea_jax.errors import UsageError
from gaea_jax.nets.ops import ReluConvNorm, avg_pool
from gaea_jax.nets.skeleton import ResidualBlock, skeleton


class Bare(nn.Module):
    """A network of 4 channels, 2 cells a stage and 5 classes, with the given cells."""

    cell: Callable[[jax.Array, str], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return skeleton(x, self.cell, channels=4, cells=2, num_classes=5, dtype=jnp.float32, train=train)


def test_residual_block(draw: Callable) -> None:
    block = ResidualBlock(6)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)), jnp.float32)
    variables = draw(block, x)
    out = block.apply(variables, x, False)

    def part(name: str, module: nn.Module, x: jax.Array) -> jax.Array:
        return module.apply({collection: tree[name] for collection, tree in variables.items()}, x, False)

    branch = part("conv_b", ReluConvNorm(6, 3), part("conv_a", ReluConvNorm(6, 3, 2), x))
    shortcut = jnp.einsum("bhwc,cf->bhwf", avg_pool(x, 2, 2), variables["params"]["shortcut"]["kernel"][0, 0])
    chex.assert_shape(out, (2, 2, 2, 6))
    chex.assert_trees_all_close(out, branch + shortcut, atol=1e-5)
    assert "bias" not in variables["params"]["shortcut"]


@pytest.mark.parametrize("image_channels", [1, 3])
def test_stages_and_head(draw: Callable, image_channels: int) -> None:
    seen = []

    def double(x: jax.Array, name: str) -> jax.Array:
        seen.append((name, x.shape[1:]))
        return 2 * x

    net = Bare(double)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, image_channels)), jnp.float32)
    variables = draw(net, x)
    assert seen == [
        (f"cell_{stage}_{n}", (8 // 2**stage, 8 // 2**stage, 4 * 2**stage)) for stage in range(3) for n in range(2)
    ]
    params = variables["params"]
    assert set(params) == {"stem", "reduce_1", "reduce_2", "last_norm", "classifier"}
    chex.assert_shape(params["stem"]["conv"]["kernel"], (3, 3, image_channels, 4))
    chex.assert_shape(params["classifier"]["linear"]["kernel"], (16, 5))

    def part(name: str, module: nn.Module, x: jax.Array) -> jax.Array:
        return module.apply({collection: tree[name] for collection, tree in variables.items()}, x, False)

    y = 4 * part("stem", ReluConvNorm(4, 3, relu=False), x)
    y = 4 * part("reduce_1", ResidualBlock(8), y)
    y = 4 * part("reduce_2", ResidualBlock(16), y)
    norm, last = params["last_norm"], variables["batch_stats"]["last_norm"]
    y = jax.nn.relu((y - last["mean"]) / jnp.sqrt(last["var"] + 1e-5) * norm["scale"] + norm["bias"])
    linear = params["classifier"]["linear"]
    expected = y.mean(axis=(1, 2)) @ linear["kernel"] + linear["bias"]
    chex.assert_trees_all_close(net.apply(variables, x, False), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 6, 6, 3), (1, 8, 7, 3), (8, 8, 3)])
def test_images_that_cannot_be_halved_twice_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"^dataset: wants image batches .* divisible by 4, got \["):
        Bare(lambda x, name: x).init(jax.random.key(0), jnp.zeros(shape), False)
