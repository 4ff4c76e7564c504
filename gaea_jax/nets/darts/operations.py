"""Candidate operations of the DARTS space: for one edge, or for all edges that leave a node at once.

Compositions are those of the `DARTS <https://arxiv.org/abs/1806.09055>`_ code, section 3.1.1 of the paper. The edges
that leave a node start from the same features, so what they compute is a stack [m, B, H, W, C] with a kernel an edge:
rectifying, padding and pooling are done once, and m small operations are one large one, with the same result.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.nets.lowering import depthwise, max_pool, pointwise
from gaea_jax.nets.ops import KERNEL_INIT, BatchNorm, avg_pool, normalise, symmetric_uniform

# Operation to the side of its kernel, its dilation, and how often the convolution is made.
SEPARABLE = {
    "sep_conv_3x3": (3, 1, 2),
    "sep_conv_5x5": (5, 1, 2),
    "dil_conv_3x3": (3, 2, 1),
    "dil_conv_5x5": (5, 2, 1),
}
POOLS: dict[str, Callable[[jax.Array, int, int], jax.Array]] = {"max_pool_3x3": max_pool, "avg_pool_3x3": avg_pool}


class SeparableConv(nn.Module):
    """ReLU, depthwise convolution, 1x1 convolution, BatchNorm; the parameters of one edge.

    Attributes:
      features: channels in and out.
      kernel: side of the square kernel.
      stride: stride in both directions.
      dilation: of the kernel.
      affine: whether BatchNorm has a learnt scale and offset.
      dtype: compute type; parameters and BatchNorm statistics stay float32.
    """

    features: int
    kernel: int
    stride: int
    dilation: int
    affine: bool
    dtype: DTypeLike

    def setup(self) -> None:
        """Declares the kernels, uniform within ``1 / sqrt(fan_in)``, and the norm."""
        shape = (self.kernel, self.kernel, self.features)
        self.depthwise = self.param("depthwise", symmetric_uniform(1 / self.kernel), shape)
        self.pointwise = self.param("pointwise", KERNEL_INIT, (self.features, self.features))
        self.norm = BatchNorm(self.features, self.affine, self.dtype)


def separable_convs(
    convs: Sequence[SeparableConv], x: jax.Array, train: bool, weights: jax.Array | None = None
) -> jax.Array:
    """Applies separable convolutions of the same kind.

    Args:
      convs: m of them.
      x: features [m, B, H, W, C], or [1, B, H, W, C] where all have the same.
      train: see `normalise`.
      weights: see `normalise`.

    Returns:
      [m, B, H / stride, W / stride, C].
    """
    first, *_ = convs
    spatial, across = (
        jnp.stack([getattr(conv, name) for conv in convs]).astype(first.dtype) for name in ("depthwise", "pointwise")
    )
    x = depthwise(nn.relu(x).astype(first.dtype), spatial, first.stride, first.dilation)
    return normalise([conv.norm for conv in convs], pointwise(x, across), train, weights)


class FactorizedReduce(nn.Module):
    """ReLU, then two 1x1 convolutions of stride 2 side by side, the second one pixel further down and right; BatchNorm.

    Attributes:
      features: channels out, even.
      inputs: channels in.
      affine: whether BatchNorm has a learnt scale and offset.
      dtype: compute type; parameters and BatchNorm statistics stay float32.
    """

    features: int
    inputs: int
    affine: bool
    dtype: DTypeLike

    def setup(self) -> None:
        """Declares the two kernels and the norm."""
        shape = (self.inputs, self.features // 2)
        self.first = self.param("first", KERNEL_INIT, shape)
        self.second = self.param("second", KERNEL_INIT, shape)
        self.norm = BatchNorm(self.features, self.affine, self.dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, inputs], H and W even, to [B, H / 2, W / 2, features]."""
        return factorized_reduces([self], x[None], train)[0]


def factorized_reduces(
    reduces: Sequence[FactorizedReduce], x: jax.Array, train: bool, weights: jax.Array | None = None
) -> jax.Array:
    """Applies factorised reductions of the same kind to the same features.

    Args:
      reduces: m of them.
      x: features [1, B, H, W, C], H and W even.
      train: see `normalise`.
      weights: see `normalise`.

    Returns:
      [m, B, H / 2, W / 2, features].
    """
    first, *_ = reduces
    x = nn.relu(x).astype(first.dtype)
    halves = []
    for name, start in (("first", 0), ("second", 1)):
        kernel = jnp.stack([getattr(reduce, name) for reduce in reduces]).astype(first.dtype)
        pixels = x[:, :, start::2, start::2]
        halves.append(pointwise(jnp.broadcast_to(pixels, (len(reduces), *pixels.shape[1:])), kernel))
    return normalise([reduce.norm for reduce in reduces], jnp.concatenate(halves, axis=-1), train, weights)


class Edge(nn.Module):
    """The parameters of all candidate operations of an edge, and the operations one by one.

    Attributes:
      operations: their names; ``none`` has no part in it.
      features: channels in and out.
      stride: 1, or 2 for an edge from an input of a reduction cell.
      affine: whether BatchNorm has a learnt scale and offset.
      norm_pools: whether BatchNorm follows a pooling, as it does in the supernet and not in derived networks.
      dtype: compute type.
    """

    operations: tuple[str, ...]
    features: int
    stride: int
    affine: bool
    norm_pools: bool
    dtype: DTypeLike

    def setup(self) -> None:
        """Declares the parts of each operation."""
        parts: dict[str, list[nn.Module]] = {}
        for operation in self.operations:
            if operation in SEPARABLE:
                kernel, dilation, times = SEPARABLE[operation]
                strides = (self.stride, *[1] * (times - 1))
                parts[operation] = [
                    SeparableConv(self.features, kernel, stride, dilation, self.affine, self.dtype)
                    for stride in strides
                ]
            elif operation in POOLS and self.norm_pools:
                parts[operation] = [BatchNorm(self.features, self.affine, self.dtype)]
            elif operation == "skip_connect" and self.stride == 2:
                parts[operation] = [FactorizedReduce(self.features, self.features, self.affine, self.dtype)]
        self.parts = parts

    def __call__(self, operation: str, x: jax.Array, train: bool, weight: jax.Array | None = None) -> jax.Array:
        """One operation.

        Args:
          operation: its name, not ``none``.
          x: features [B, H, W, C] of the source.
          train: batch statistics if True, running statistics if not.
          weight: scalar that multiplies the result; None is 1.

        Returns:
          [B, H / stride, W / stride, C].
        """
        return apply_edges([self], operation, x, train, None if weight is None else weight[None])[0]


def apply_edges(
    edges: Sequence[Edge], operation: str, x: jax.Array, train: bool, weights: jax.Array | None = None
) -> jax.Array:
    """The same operation on edges that leave the same node with the same stride.

    Args:
      edges: m of them.
      operation: its name, not ``none``.
      x: features [B, H, W, C] of the node.
      train: batch statistics if True, running statistics if not.
      weights: [m], which multiply the results; None are ones.

    Returns:
      [m, B, H / stride, W / stride, C].
    """
    first, *_ = edges
    stack = x[None]
    parts = list(zip(*(edge.parts.get(operation, []) for edge in edges), strict=True))
    if operation in SEPARABLE:
        for place, convs in enumerate(parts):
            stack = separable_convs(convs, stack, train, weights if place == len(parts) - 1 else None)
        return stack
    if operation in POOLS:
        stack = POOLS[operation](x.astype(first.dtype), 3, first.stride)[None]
    if parts:
        (modules,) = parts
        if operation in POOLS:
            return normalise(modules, stack, train, weights)
        return factorized_reduces(modules, stack, train, weights)
    scale = jnp.ones(len(edges)) if weights is None else weights
    return stack * scale.astype(first.dtype)[:, None, None, None, None]


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """Drops the whole result for some images of a batch, and scales up the others.

    Args:
      x: [B, H, W, C].
      rate: probability of dropping, from 0 to less than 1.
      key: random key.

    Returns:
      [B, H, W, C]; its expectation is x.

    References:
      Larsson et al, `FractalNet <https://arxiv.org/abs/1605.07648>`_, 2017
    """
    keep = 1 - jnp.asarray(rate, jnp.float32)
    mask = jax.random.bernoulli(key, keep, (len(x), *[1] * (x.ndim - 1)))
    return x * (mask / keep).astype(x.dtype)


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
