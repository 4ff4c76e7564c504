"""Candidate operations and the small blocks that the networks are built from, as Flax Linen modules.

All work on NHWC batches. Convolutions and the classifier start from the initialisation of the papers' code
(uniform within ``1 / sqrt(fan_in)``), BatchNorm has epsilon 1e-5 and keeps 0.9 of its running statistics.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.lowering import conv_general_dilated, each, max_pool, moments, scale, sum_pool

MOMENTUM = 0.9
EPSILON = 1e-5
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """Initialises by the uniform distribution from ``-bound`` to ``bound``."""

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(features: int, kernel: int, stride: int = 1, *, dtype: DTypeLike, name: str) -> nn.Conv:
    """A convolution without bias; to be called in a compact method.

    Args:
      features: output channels.
      kernel: side of the square kernel; the padding is ``kernel // 2`` on each side.
      stride: stride in both directions.
      dtype: compute type; the kernel is float32.
      name: name of the submodule.

    Returns:
      The module, to be called with [B, H, W, C].
    """
    pad = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=KERNEL_INIT,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


class BatchNorm(nn.Module):
    """BatchNorm as the papers set it, that can weigh its output in the same pass.

    Like `nn.BatchNorm` in everything but ``weight``; see `normalise`. The running variance averages the variance of the
    batches as it is, without PyTorch's factor n / (n - 1).

    Attributes:
      features: number of channels.
      affine: whether there is a learnt scale and offset.
      dtype: type of the output; statistics and arithmetic are float32 at least.
    """

    features: int
    affine: bool
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Declares the running statistics, and what is learnt."""
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, self.features)
        self.var = self.variable("batch_stats", "var", jnp.ones, self.features)
        if self.affine:
            self.scale = self.param("scale", nn.initializers.ones, (self.features,))
            self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: jax.Array, train: bool, weight: jax.Array | float = 1.0) -> jax.Array:
        """[B, H, W, C] to ``weight`` times its normalised form, of the same shape."""
        running = {"mean": self.mean.value[None], "var": self.var.value[None]}
        learnt = {"scale": self.scale[None], "bias": self.bias[None]} if self.affine else {}
        out, running = normalise(x[None], running, learnt, train, jnp.asarray(weight)[None], self.dtype)
        if train and not self.is_initializing():
            self.mean.value, self.var.value = running["mean"][0], running["var"][0]
        return out[0]


def normalise(
    x: jax.Array,
    running: Mapping[str, jax.Array],
    learnt: Mapping[str, jax.Array],
    train: bool,
    weights: jax.Array | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalises a stack, each of its members by statistics of its own.

    Mixing weighs each normalised feature map by a scalar. Where that scalar multiplies the inverse deviation of each
    channel instead of the map, neither the product nor its two gradients pass over the map again.

    Args:
      x: features [m, B, H, W, C], or [1, B, H, W, C] where all have the same.
      running: running ``mean`` and ``var``, [m, C].
      learnt: ``scale`` and ``bias``, [m, C], or nothing.
      train: batch statistics if True, running statistics if not.
      weights: [m], which multiply the results; None are ones.
      dtype: type of the result; statistics and arithmetic are float32 at least.

    Returns:
      [m, B, H, W, C], and the new running statistics.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    found = dict(running)
    if train:
        mean, of_squares = moments(x)
        found = {"mean": mean, "var": jnp.maximum(of_squares - mean * mean, 0)}
        running = {name: MOMENTUM * running[name] + (1 - MOMENTUM) * value for name, value in found.items()}
    factor = jax.lax.rsqrt(found["var"] + EPSILON)
    if weights is not None:
        factor = factor * weights[:, None]
    if learnt:
        factor = factor * learnt["scale"]
    out = scale(x, found["mean"], factor)
    if learnt:
        out += each(learnt["bias"] if weights is None else learnt["bias"] * weights[:, None])
    return out.astype(dtype), dict(running)


def avg_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Mean over a square window; padding (``window // 2`` a side where the window is odd) does not count.

    Args:
      x: [B, H, W, C].
      window: side of the window.
      stride: stride in both directions.

    Returns:
      [B, H / stride, W / stride, C] of the type of x.
    """
    rows, columns = (_seen(side, window, stride) for side in x.shape[1:3])
    # Flax's own average counts the pixels of every image in float32: slow to compile, and wider than bfloat16.
    return sum_pool(x, window, stride) / (rows[:, None] * columns)[..., None].astype(x.dtype)


def _seen(side: int, window: int, stride: int) -> np.ndarray:
    """How many of `side` pixels in a row each window sees."""
    pad = window // 2 if window % 2 else 0
    first = np.arange(-pad, side + pad - window + 1, stride)
    return np.minimum(first + window, side) - np.maximum(first, 0)


class ReluConvNorm(nn.Module):
    """ReLU, convolution without bias, BatchNorm.

    Attributes:
      features: output channels.
      kernel: side of the square kernel; the padding is ``kernel // 2`` on each side.
      stride: stride in both directions.
      affine: whether BatchNorm has a learnt scale and offset.
      relu: False for a stem, which sees the image itself.
      dtype: compute type; parameters and BatchNorm statistics stay float32.
    """

    features: int
    kernel: int
    stride: int = 1
    affine: bool = True
    relu: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, weight: jax.Array | float = 1.0) -> jax.Array:
        """[B, H, W, C] to ``weight`` times [B, H / stride, W / stride, features]; see `BatchNorm`."""
        x = conv(self.features, self.kernel, self.stride, dtype=self.dtype, name="conv")(nn.relu(x) if self.relu else x)
        return BatchNorm(self.features, self.affine, self.dtype, name="norm")(x, train, weight)


def check_images(x: jax.Array, divisor: int, of: str = "") -> None:
    """Refuses what is not a batch of images of a size that a network can halve.

    Args:
      x: to be [B, H, W, channels].
      divisor: what H and W have to be divisible by.
      of: what asks for that, for the error.

    Raises:
      UsageError: on ``dataset``.
    """
    if x.ndim != 4 or x.shape[1] % divisor or x.shape[2] % divisor:
        wanted = f"[B, H, W, channels], H and W divisible by {divisor}{of}"
        raise UsageError("dataset", f"wants image batches {wanted}, got {list(x.shape)}")


class ConvNormRelu(nn.Module):
    """Convolution without bias, BatchNorm, ReLU.

    Attributes:
      features: output channels.
      kernel: side of the square kernel; the padding is ``kernel // 2`` on each side.
      dtype: compute type; parameters and BatchNorm statistics stay float32.
    """

    features: int
    kernel: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, features]."""
        return nn.relu(ReluConvNorm(self.features, self.kernel, relu=False, dtype=self.dtype, name="linear")(x, train))


def nas_bench_101_operation(operation: str, x: jax.Array, *, dtype: DTypeLike, train: bool, name: str) -> jax.Array:
    """Applies an operation of NAS-Bench-101; to be called in a compact method.

    Args:
      operation: one of `gaea_jax.spaces.nas_bench_101.OPERATIONS`.
      x: [B, H, W, C].
      dtype: compute type.
      train: batch statistics if True, running statistics if not.
      name: name of the submodule, where the operation has parameters.

    Returns:
      [B, H, W, C].
    """
    if operation == "maxpool3x3":
        return max_pool(x, 3, 1)
    kernel = {"conv3x3-bn-relu": 3, "conv1x1-bn-relu": 1}[operation]
    return ConvNormRelu(x.shape[-1], kernel, dtype, name=name)(x, train)


class Node(NamedTuple):
    """A node of a cell, with what all edges that leave it share.

    Attributes:
      features: [B, H, W, C].
      pooled: their 3x3 average, or None if it is not shared; pooling has no parameters, so one map serves every edge
        exactly.
    """

    features: jax.Array
    pooled: jax.Array | None = None

    @classmethod
    def of(cls, features: jax.Array) -> Self:
        """The node that holds `features`, and shares their average."""
        return cls(features, avg_pool(features, 3, 1))


def nas_bench_201_operation(
    operation: str,
    node: Node,
    weight: jax.Array | float = 1.0,
    *,
    affine: bool,
    dtype: DTypeLike,
    train: bool,
    name: str,
) -> jax.Array:
    """Applies a candidate operation of NAS-Bench-201 to a node; to be called in a compact method.

    Args:
      operation: name of the operation, not ``none``.
      node: the node that the edge leaves.
      weight: scalar that multiplies the result.
      affine: whether BatchNorm has a learnt scale and offset.
      dtype: compute type.
      train: batch statistics if True, running statistics if not.
      name: name of the submodule, where the operation has parameters.

    Returns:
      [B, H, W, C], the shape of the node's features.
    """
    if operation == "skip_connect":
        return weight * node.features
    if operation == "avg_pool_3x3":
        return weight * (avg_pool(node.features, 3, 1) if node.pooled is None else node.pooled)
    kernel = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[operation]
    width = node.features.shape[-1]
    return ReluConvNorm(width, kernel, affine=affine, dtype=dtype, name=name)(node.features, train, weight)


class Classifier(nn.Module):
    """Global average pool and a linear layer, in float32 at least, so that the loss sees full precision.

    Attributes:
      num_classes: number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to logits [B, num_classes]."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        bias_init = symmetric_uniform(1 / math.sqrt(x.shape[-1]))
        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, bias_init=bias_init, name="linear")(x)


def shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Interleaves groups of channels (ShuffleNet).

    Args:
      x: [..., C].
      groups: number of groups, which divides C.

    Returns:
      [..., C].

    Example:
      >>> shuffle(jnp.arange(8), 4).tolist()
      [0, 2, 4, 6, 1, 3, 5, 7]
    """
    return jnp.swapaxes(x.reshape(*x.shape[:-1], groups, -1), -1, -2).reshape(x.shape)
