"""Candidate operations and the small blocks that the networks are built from, as Flax Linen modules.

All work on NHWC batches. Convolutions and the classifier start from the initialisation of the papers' code
(uniform within ``1 / sqrt(fan_in)``), BatchNorm has epsilon 1e-5 and keeps 0.9 of its running statistics.
"""

import math
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def batch_norm(affine: bool, dtype: DTypeLike, name: str) -> nn.BatchNorm:
    """BatchNorm as the papers set it; statistics are float32 whatever the compute type is.

    The running variance averages the variance of the batches as it is, without PyTorch's factor n / (n - 1).

    Args:
      affine: whether there is a learnt scale and offset.
      dtype: type of the output.
      name: name of the submodule.

    Returns:
      A Linen module; call it with ``use_running_average``.
    """
    return nn.BatchNorm(
        momentum=0.9,
        epsilon=1e-5,
        use_scale=affine,
        use_bias=affine,
        dtype=dtype,
        param_dtype=jnp.float32,
        name=name,
    )


def avg_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Mean over a square window; padding (``window // 2`` a side where the window is odd) does not count.

    Args:
      x: [B, H, W, C].
      window: side of the window.
      stride: stride in both directions.

    Returns:
      [B, H / stride, W / stride, C] of the type of x.
    """
    pad = window // 2 if window % 2 else 0
    mean = nn.avg_pool(x, (window, window), (stride, stride), ((pad, pad), (pad, pad)), count_include_pad=False)
    # Flax divides by float32 counts, which would turn the rest of a bfloat16 cell into float32.
    return mean.astype(x.dtype)


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
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H / stride, W / stride, features]; `train` selects batch statistics."""
        pad = self.kernel // 2
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=KERNEL_INIT,
            name="conv",
        )(nn.relu(x) if self.relu else x)
        return batch_norm(self.affine, self.dtype, "norm")(x, use_running_average=not train)


class Node(NamedTuple):
    """A node of a cell, with what all edges that leave it share.

    Attributes:
      features: [B, H, W, C].
      pooled: their 3x3 average; pooling has no parameters, so one map serves every edge exactly.
    """

    features: jax.Array
    pooled: jax.Array

    @classmethod
    def of(cls, features: jax.Array) -> Self:
        """The node that holds `features`."""
        return cls(features, avg_pool(features, 3, 1))


def nas_bench_201_operation(
    operation: str, node: Node, *, affine: bool, dtype: DTypeLike, train: bool, name: str
) -> jax.Array:
    """Applies a candidate operation of NAS-Bench-201 to a node; to be called in a compact method.

    Args:
      operation: name of the operation, not ``none``.
      node: the node that the edge leaves.
      affine: whether BatchNorm has a learnt scale and offset.
      dtype: compute type.
      train: batch statistics if True, running statistics if not.
      name: name of the submodule, where the operation has parameters.

    Returns:
      [B, H, W, C], the shape of the node's features.
    """
    if operation == "skip_connect":
        return node.features
    if operation == "avg_pool_3x3":
        return node.pooled
    kernel = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[operation]
    width = node.features.shape[-1]
    return ReluConvNorm(width, kernel, affine=affine, dtype=dtype, name=name)(node.features, train)


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
        bound = 1 / math.sqrt(x.shape[-1])

        def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Dense(self.num_classes, kernel_init=KERNEL_INIT, bias_init=bias_init, name="linear")(x)
