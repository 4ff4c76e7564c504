from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gaea_jax.nets.darts.operations import Kind, Operation, drop_path
from gaea_jax.spaces.darts import KNOWN

EPSILON = 1e-5
LAYOUT = ("NHWC", "HWIO", "NHWC")
X = np.random.default_rng(0).normal(size=(3, 6, 6, 4))


def convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int = 1, groups: int = 1) -> jax.Array:
    pad = dilation * (kernel.shape[0] // 2)
    how = ((stride, stride), ((pad, pad), (pad, pad)), (1, 1), (dilation, dilation))
    return jax.lax.conv_general_dilated(x, kernel, *how, dimension_numbers=LAYOUT, feature_group_count=groups)


def norm(x: jax.Array, params: Any, statistics: Any, train: bool) -> jax.Array:
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (statistics["mean"], statistics["var"])
    out = (x - mean) / jnp.sqrt(var + EPSILON)
    return out * params["scale"] + params["bias"] if params else out


def written_out(operation: str, x: jax.Array, params: Any, statistics: Any, stride: int, train: bool) -> jax.Array:
    """The composition of the specification, with plain convolutions, for one edge."""

    def normed(number: int, x: jax.Array) -> jax.Array:
        learnt = {name: params[f"{name}_{number}"] for name in ("scale", "bias") if f"{name}_{number}" in params}
        return norm(x, learnt, {name: statistics[f"{name}_{number}"] for name in ("mean", "var")}, train)

    if operation == "skip_connect":
        if stride == 1:
            return x
        x = nn.relu(x)
        halves = [
            convolve(x, params["first"][None, None], 2),
            convolve(x[:, 1:, 1:], params["second"][None, None], 2),
        ]
        return normed(0, jnp.concatenate(halves, -1))
    if operation.startswith("max_pool"):
        side = int(operation[-1])
        pad = (side // 2, side // 2)
        return normed(0, nn.max_pool(x, (side, side), (stride, stride), (pad, pad)))
    if operation == "avg_pool_3x3":
        return normed(0, nn.avg_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)), count_include_pad=False))
    if operation == "conv_3x1_1x3":
        x = nn.relu(x)
        for number, (pads, strides) in enumerate(((((0, 0), (1, 1)), (1, stride)), (((1, 1), (0, 0)), (stride, 1)))):
            x = jax.lax.conv_general_dilated(x, params[f"kernel_{number}"], strides, pads, dimension_numbers=LAYOUT)
        return normed(0, x)
    if operation.startswith("conv "):
        return normed(0, convolve(nn.relu(x), params["kernel_0"], stride))
    kind, size = operation.split("_")[0], operation.split("_")[-1]
    for number in range(2 if kind == "sep" else 1):
        spatial = params[f"depthwise_{number}"][:, :, None]
        assert spatial.shape[0] == int(size[0])
        x = convolve(nn.relu(x), spatial, 1 if number else stride, 2 if kind == "dil" else 1, x.shape[-1])
        x = normed(number, convolve(x, params[f"pointwise_{number}"][None, None], 1))
    return x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", KNOWN[1:])
def test_edges_of_a_node_compute_what_each_computes_alone(draw: Any, operation: str, stride: int) -> None:
    affine = stride == 1 and "pool" not in operation  # the specification has affine pooling nowhere
    kind = Kind(operation, 4, stride, affine, norm_pools=True, dtype=jnp.float32)
    narrow = draw(Operation(kind, 3), jnp.asarray(X, jnp.float32))
    weights = np.array([0.2, 0.5, 1.5])
    with jax.enable_x64(True):
        module = Operation(kind._replace(dtype=jnp.float64), 3)
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), narrow)
        for train in (True, False):

            @jax.jit
            def run(variables: Any, train: bool = train) -> jax.Array:
                return module.apply(variables, X, train, weights, mutable=["batch_stats"])[0]

            expected = []
            for edge, weight in enumerate(weights):
                params, statistics = (
                    jax.tree.map(lambda leaf, edge=edge: leaf[edge], variables.get(name, {}))
                    for name in ("params", "batch_stats")
                )
                expected.append(weight * written_out(operation, X, params, statistics, stride, train))
            chex.assert_trees_all_close(run(variables), jnp.stack(expected), atol=1e-9)


def test_pools_of_derived_networks_are_not_normalised() -> None:
    kind = Kind("avg_pool_3x3", 4, 2, affine=True, norm_pools=False, dtype=jnp.float32)
    module = Operation(kind, 1)
    x = jnp.asarray(X, jnp.float32)
    expected = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False)
    chex.assert_trees_all_close(module.apply(module.init(jax.random.key(0), x, True), x, True)[0], expected, atol=1e-6)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    x = jnp.ones((4000, 2, 2, 3))
    dropped = drop_path(x, 0.25, jax.random.key(0))
    for image in dropped[:50]:
        assert set(np.unique(image).tolist()) in ({0.0}, {np.float32(1 / 0.75).item()})
    assert abs(float(dropped.mean()) - 1) < 0.03
    chex.assert_trees_all_equal(drop_path(x, 0.0, jax.random.key(0)), x)
