from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gaea_jax.nets.darts.operations import Edge, apply_edges, drop_path, shuffle
from gaea_jax.spaces.darts import OPERATIONS

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
    """The composition of the specification, with plain convolutions."""

    def part(number: int) -> tuple[Any, Any]:
        name = f"parts_{operation}_{number}"
        return params.get(name, {}), statistics.get(name, {}).get("norm", statistics.get(name, {}))

    if operation == "skip_connect":
        if stride == 1:
            return x
        own, running = part(0)
        x = nn.relu(x)
        halves = [
            convolve(x, own["first"][None, None], 2),
            convolve(x[:, 1:, 1:], own["second"][None, None], 2),
        ]
        return norm(jnp.concatenate(halves, -1), own.get("norm"), running, train)
    if operation == "max_pool_3x3":
        return norm(nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1))), None, part(0)[1], train)
    if operation == "avg_pool_3x3":
        pooled = nn.avg_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)), count_include_pad=False)
        return norm(pooled, None, part(0)[1], train)
    kind, _, size = operation.split("_")
    for number in range(2 if kind == "sep" else 1):
        own, running = part(number)
        spatial = own["depthwise"][:, :, None]
        assert spatial.shape[0] == int(size[0])
        x = convolve(nn.relu(x), spatial, 1 if number else stride, 2 if kind == "dil" else 1, x.shape[-1])
        x = norm(convolve(x, own["pointwise"][None, None], 1), own.get("norm"), running, train)
    return x


class Edges(nn.Module):
    """Three edges that leave a node."""

    operation: str
    stride: int
    affine: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, weights: jax.Array | None = None) -> jax.Array:
        edges = [
            Edge(OPERATIONS[1:], 4, self.stride, self.affine, norm_pools=True, dtype=x.dtype, name=f"edge_{number}")
            for number in range(3)
        ]
        if self.is_initializing():
            for other in OPERATIONS[1:]:
                apply_edges(edges, other, x, train)
        return apply_edges(edges, self.operation, x, train, weights)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS[1:])
def test_edges_of_a_node_compute_what_each_computes_alone(draw: Any, operation: str, stride: int) -> None:
    affine = stride == 1 and "pool" not in operation  # the specification has affine pooling nowhere
    module = Edges(operation, stride, affine)
    narrow = draw(module, jnp.asarray(X, jnp.float32))
    weights = np.array([0.2, 0.5, 1.5])
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), narrow)
        for train in (True, False):

            @jax.jit
            def run(variables: Any, train: bool = train) -> jax.Array:
                return module.apply(variables, X, train, weights, mutable=["batch_stats"])[0]

            expected = [
                weight
                * written_out(
                    operation,
                    X,
                    variables.get("params", {}).get(f"edge_{number}", {}),
                    variables.get("batch_stats", {}).get(f"edge_{number}", {}),
                    stride,
                    train,
                )
                for number, weight in enumerate(weights)
            ]
            chex.assert_trees_all_close(run(variables), jnp.stack(expected), atol=1e-9)


def test_shuffle_interleaves_groups() -> None:
    assert shuffle(jnp.arange(8), 4).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    x = jnp.ones((4000, 2, 2, 3))
    dropped = drop_path(x, 0.25, jax.random.key(0))
    for image in dropped[:50]:
        assert set(np.unique(image).tolist()) in ({0.0}, {np.float32(1 / 0.75).item()})
    assert abs(float(dropped.mean()) - 1) < 0.03
    chex.assert_trees_all_equal(drop_path(x, 0.0, jax.random.key(0)), x)
