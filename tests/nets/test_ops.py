import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from gaea_jax.nets import Mixture, supernet
from gaea_jax.nets.ops import Classifier, Node, ReluConvNorm, avg_pool, nas_bench_201_operation
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, OPERATIONS

RNG = np.random.default_rng(0)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """A convolution with padding of half the kernel, written out in float64."""
    side = kernel.shape[0]
    pad = side // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (range(0, n - side + 1, stride) for n in x.shape[1:3])
    windows = [[np.tensordot(x[:, i : i + side, j : j + side], kernel, 3) for j in columns] for i in rows]
    return np.moveaxis(np.array(windows), 2, 0)


def test_avg_pool_does_not_count_padding() -> None:
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    chex.assert_trees_all_close(
        avg_pool(x, 3, 1)[0, :, :, 0], jnp.array([[2.0, 2.5, 3.0], [3.5, 4.0, 4.5], [5.0, 5.5, 6.0]]), rtol=1e-6
    )


@pytest.mark.parametrize("window", [2, 3])
def test_avg_pool_keeps_the_type(window: int) -> None:
    chex.assert_type(avg_pool(jnp.ones((1, 4, 4, 1), jnp.bfloat16), window, 1), jnp.bfloat16)


def test_avg_pool_halves() -> None:
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    chex.assert_trees_all_close(avg_pool(x, 2, 2)[0, :, :, 0], jnp.array([[2.5, 4.5], [10.5, 12.5]]))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "affine", "relu"), [(3, 1, True, True), (3, 2, False, True), (1, 1, True, False)]
)
def test_relu_conv_norm_against_numpy(kernel: int, stride: int, affine: bool, relu: bool, train: bool) -> None:
    x = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    weights = RNG.normal(size=(kernel, kernel, 3, 5)).astype(np.float32)
    scale, bias, old_mean = RNG.normal(size=(3, 5)).astype(np.float32)
    old_var = RNG.uniform(0.5, 2, 5).astype(np.float32)
    params = {"conv": {"kernel": weights}} | ({"norm": {"scale": scale, "bias": bias}} if affine else {})
    variables = {"params": params, "batch_stats": {"norm": {"mean": old_mean, "var": old_var}}}

    convolved = convolve(np.maximum(x, 0) if relu else x, weights, stride)
    mean, var = convolved.mean(axis=(0, 1, 2)), convolved.var(axis=(0, 1, 2))
    used_mean, used_var = (mean, var) if train else (old_mean, old_var)
    expected = (convolved - used_mean) / np.sqrt(used_var + 1e-5)
    if affine:
        expected = expected * scale + bias
    expected_stats = {"norm": {"mean": 0.9 * old_mean + 0.1 * mean, "var": 0.9 * old_var + 0.1 * var}}

    module = ReluConvNorm(5, kernel, stride, affine=affine, relu=relu)
    out, updated = module.apply(variables, x, train, mutable=["batch_stats"])
    chex.assert_trees_all_close(np.asarray(out, np.float64), expected, atol=2e-5)
    chex.assert_trees_all_close(
        jax.tree.map(np.float64, updated["batch_stats"]),
        jax.tree.map(np.float64, expected_stats if train else variables["batch_stats"]),
        atol=1e-5,
    )


class Operation(nn.Module):
    name_of: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nas_bench_201_operation(
            self.name_of, Node.of(x), affine=False, dtype=jnp.float32, train=True, name="operation"
        )


@pytest.mark.parametrize("operation", OPERATIONS[1:])
def test_operations_of_the_space(operation: str) -> None:
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
    apply = functools.partial(Operation(operation).apply, mutable=["batch_stats"])
    side = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}.get(operation)
    if side is None:
        out, _ = apply({}, x)
        chex.assert_trees_all_equal(out, x if operation == "skip_connect" else avg_pool(x, 3, 1))
        return
    kernel = RNG.normal(size=(side, side, 3, 3)).astype(np.float32)
    statistics = {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    variables = {"params": {"conv": {"kernel": kernel}}, "batch_stats": statistics}
    expected = ReluConvNorm(3, side, affine=False).apply(variables, x, True, mutable=["batch_stats"])[0]
    out, _ = apply({name: {"operation": tree} for name, tree in variables.items()}, x)
    chex.assert_trees_all_equal(out, expected)


def test_a_node_holds_its_average() -> None:
    x = jnp.asarray(RNG.normal(size=(1, 4, 4, 2)), jnp.float32)
    chex.assert_trees_all_equal(Node.of(x), Node(x, avg_pool(x, 3, 1)))


def test_classifier_against_numpy() -> None:
    x = RNG.normal(size=(3, 2, 2, 4)).astype(np.float32)
    kernel, bias = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=6).astype(np.float32)
    variables = {"params": {"linear": {"kernel": kernel, "bias": bias}}}
    expected = x.mean(axis=(1, 2)) @ kernel + bias
    chex.assert_trees_all_close(Classifier(6).apply(variables, x), expected, atol=1e-6)
    half = Classifier(6).apply(variables, x.astype(jnp.bfloat16))
    chex.assert_type(half, jnp.float32)
    rounded = np.asarray(x.astype(jnp.bfloat16), np.float32)
    chex.assert_trees_all_close(half, rounded.mean(axis=(1, 2)) @ kernel + bias, atol=1e-6)


def test_initialisation_is_uniform_within_one_over_root_fan_in() -> None:
    net = supernet(NAS_BENCH_201, channels=8, cells=1, num_classes=200)
    mixture = Mixture({"cell": jnp.full((6, 5), 0.2)})
    # The rbg generator draws in a tenth of the compile time of threefry, which compiles once a kernel.
    key = jax.random.key(0, impl="rbg")
    params = jax.jit(lambda key: net.init(key, jnp.zeros((1, 8, 8, 3)), mixture, train=False)["params"])(key)
    flat = flatten_dict(jax.tree.map(np.asarray, params))
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] == "kernel"}
    assert len(kernels) == 1 + 3 * 12 + 2 * 3 + 1
    bounded = [leaf * np.sqrt(np.prod(leaf.shape[:-1])) for leaf in kernels.values()]
    bounded.append(flat["classifier", "linear", "bias"] * np.sqrt(32))
    for values in bounded:
        assert np.abs(values).max() <= 1
        # The variance of n draws from U(-1, 1) is 1/3 with a standard error of sqrt(4 / 45 / n).
        assert abs(np.square(values).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / values.size)
    together = np.concatenate([values.ravel() for values in bounded])
    assert np.abs(together).max() > 0.999 and len(np.unique(together)) > 0.99 * len(together)
    for path, leaf in flat.items():
        if path[-1] in ("scale", "bias") and path[0] != "classifier":
            chex.assert_trees_all_equal(leaf, np.full_like(leaf, path[-1] == "scale"))
