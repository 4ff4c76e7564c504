"""Candidate operations of the DARTS space, as pure functions: for one edge, or for all edges that leave a node at once.

Compositions are those of the `DARTS <https://arxiv.org/abs/1806.09055>`_ code, section 3.1.1 of the paper. The edges
that leave a node start from the same features, so what they compute is a stack [m, B, H, W, C] with a kernel an edge:
rectifying, padding and pooling are done once, and m small operations are one large one, with the same result.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.nets.lowering import conv_general_dilated, depthwise, max_pool, pointwise, scale
from gaea_jax.nets.ops import KERNEL_INIT, BatchNorm, avg_pool, normalise, symmetric_uniform

Arrays = Mapping[str, jax.Array]

# Operation to the side of its kernel, its dilation, and how often the convolution is made.
SEPARABLE = {
    "sep_conv_3x3": (3, 1, 2),
    "sep_conv_5x5": (5, 1, 2),
    "dil_conv_3x3": (3, 2, 1),
    "dil_conv_5x5": (5, 2, 1),
    "sep_3x3": (3, 1, 2),
    "sep_5x5": (5, 1, 2),
    "sep_7x7": (7, 1, 2),
}
# Operation to the windows of its convolutions, of which a side of 1 has no stride, unless both are 1.
CONVOLUTIONS = {"conv 1x1": ((1, 1),), "conv 3x3": ((3, 3),), "conv_3x1_1x3": ((1, 3), (3, 1))}
# Operation to what it computes, and the side of its window.
POOLS: dict[str, tuple[Callable[[jax.Array, int, int], jax.Array], int]] = {
    "max_pool_3x3": (max_pool, 3),
    "max_pool_5x5": (max_pool, 5),
    "max_pool_7x7": (max_pool, 7),
    "avg_pool_3x3": (avg_pool, 3),
}


class Kind(NamedTuple):
    """What the edges of a stack have in common.

    Attributes:
      operation: its name, not ``none``.
      features: channels in and out.
      stride: 1, or 2 for edges from an input of a reduction cell.
      affine: whether BatchNorm has a learnt scale and offset.
      norm_pools: whether BatchNorm follows a pooling, as it does in the supernet and not in derived networks.
      dtype: compute type.
    """

    operation: str
    features: int
    stride: int
    affine: bool
    norm_pools: bool
    dtype: DTypeLike


class Operation(nn.Module):
    """The parameters and running statistics of an operation on m edges, [m, ...] each.

    Attributes:
      kind: which operation.
      edges: m.
    """

    kind: Kind
    edges: int

    def setup(self) -> None:
        """Declares them: kernels uniform within ``1 / sqrt(fan_in)``."""
        kind, m, c = self.kind, self.edges, self.kind.features
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
        params: dict[str, jax.Array] = {}
        norms = 0
        if kind.operation in SEPARABLE:
            side, _, norms = SEPARABLE[kind.operation]
            for number in range(norms):
                shape = (m, side, side, c)
                params[f"depthwise_{number}"] = self.param(f"depthwise_{number}", symmetric_uniform(1 / side), shape)
                params[f"pointwise_{number}"] = self.param(f"pointwise_{number}", kernel_init, (m, c, c))
        elif kind.operation in CONVOLUTIONS:
            norms = 1
            for number, window in enumerate(CONVOLUTIONS[kind.operation]):
                params[f"kernel_{number}"] = self.param(f"kernel_{number}", kernel_init, (m, *window, c, c))
        elif kind.operation in POOLS:
            norms = int(kind.norm_pools)
        elif kind.stride == 2:
            norms = 1
            for name in ("first", "second"):
                params[name] = self.param(name, kernel_init, (m, c, c // 2))
        running: dict[str, Any] = {}
        for number in range(norms):
            running[f"mean_{number}"] = self.variable("batch_stats", f"mean_{number}", jnp.zeros, (m, c))
            running[f"var_{number}"] = self.variable("batch_stats", f"var_{number}", jnp.ones, (m, c))
            if kind.affine:
                params[f"scale_{number}"] = self.param(f"scale_{number}", nn.initializers.ones, (m, c))
                params[f"bias_{number}"] = self.param(f"bias_{number}", nn.initializers.zeros, (m, c))
        self.params = params
        self.running = running

    def __call__(self, x: jax.Array, train: bool, weights: jax.Array | None = None) -> jax.Array:
        """All edges, from the same features [B, H, W, C] to [m, B, H / stride, W / stride, C]; see `apply`."""
        running = {name: variable.value for name, variable in self.running.items()}
        out, running = apply(self.kind, self.params, running, x, train, weights, self.edges)
        if train:
            self.keep(running)
        return out

    def keep(self, running: Arrays) -> None:
        """Sets the running statistics, unless the module is only being initialised."""
        if not self.is_initializing():
            for name, value in running.items():
                self.running[name].value = value


def apply(
    kind: Kind,
    params: Arrays,
    running: Arrays,
    x: jax.Array,
    train: bool,
    weights: jax.Array | None,
    edges: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The same operation on m edges that leave the same node.

    Args:
      kind: which operation.
      params: what an `Operation` declares, for these edges.
      running: its running statistics.
      x: features [B, H, W, C] of the node.
      train: batch statistics if True, running statistics if not.
      weights: [m], which multiply the results; None are ones.
      edges: m.

    Returns:
      [m, B, H / stride, W / stride, C], and the new running statistics.
    """
    stack, new = x.astype(kind.dtype)[None], dict(running)

    def norm(number: int, stack: jax.Array, weights: jax.Array | None) -> jax.Array:
        learnt = {name: params[f"{name}_{number}"] for name in ("scale", "bias")} if kind.affine else {}
        statistics = {name: running[f"{name}_{number}"] for name in ("mean", "var")}
        out, statistics = normalise(stack, statistics, learnt, train, weights, kind.dtype)
        new.update({f"{name}_{number}": value for name, value in statistics.items()})
        return out

    if kind.operation in SEPARABLE:
        _, dilation, times = SEPARABLE[kind.operation]
        for number in range(times):
            spatial, across = (params[f"{name}_{number}"].astype(kind.dtype) for name in ("depthwise", "pointwise"))
            stack = depthwise(nn.relu(stack), spatial, 1 if number else kind.stride, dilation)
            stack = norm(number, pointwise(stack, across), weights if number == times - 1 else None)
        return stack, new
    if kind.operation in CONVOLUTIONS:
        stack = nn.relu(stack)
        for number, window in enumerate(CONVOLUTIONS[kind.operation]):
            strides = [kind.stride if side > 1 or max(window) == 1 else 1 for side in window]
            stack = convolved(stack, params[f"kernel_{number}"].astype(kind.dtype), strides)
        return norm(0, stack, weights), new
    if kind.operation in POOLS:
        pool, side = POOLS[kind.operation]
        stack = pool(stack[0], side, kind.stride)[None]
        if kind.norm_pools:
            return norm(0, stack, weights), new
    elif kind.stride == 2:
        kernels = [params[name].astype(kind.dtype) for name in ("first", "second")]
        return norm(0, factorized(stack, *kernels), weights), new
    shape = edges, stack.shape[-1]
    factor = jnp.broadcast_to((jnp.ones(edges) if weights is None else weights)[:, None], shape)
    return scale(stack, jnp.zeros(shape[1:], kind.dtype)[None], factor.astype(kind.dtype)), new


def convolved(x: jax.Array, kernels: jax.Array, strides: Sequence[int]) -> jax.Array:
    """Dense convolutions of a stack, padded so that a stride of 1 keeps the size.

    Args:
      x: features [m, B, H, W, C], or [1, B, H, W, C] where the whole stack starts from the same.
      kernels: [m, h, w, C, D] with h and w odd, of the dtype of the features.
      strides: in both directions.

    Returns:
      [m, B, ceil(H / stride), ceil(W / stride), D].
    """
    m, *window, _, _ = kernels.shape
    if window == [1, 1]:
        return pointwise(x[:, :, :: strides[0], :: strides[1]], kernels[:, 0, 0])
    padding = [(side // 2, side // 2) for side in window]
    return jnp.stack(
        [
            conv_general_dilated(features, kernel, strides, padding)
            for features, kernel in zip(jnp.broadcast_to(x, (m, *x.shape[1:])), kernels, strict=True)
        ]
    )


def factorized(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """ReLU, then two 1x1 convolutions of stride 2 side by side, the second one pixel further down and right.

    Args:
      x: features [1, B, H, W, C], H and W even.
      first: [m, C, D / 2], of the dtype of the features.
      second: the same.

    Returns:
      [m, B, H / 2, W / 2, D].
    """
    x = nn.relu(x)
    halves = []
    for start, kernel in enumerate((first, second)):
        halves.append(pointwise(x[:, :, start::2, start::2], kernel))
    return jnp.concatenate(halves, axis=-1)


class FactorizedReduce(nn.Module):
    """Halves the features of a whole cell, see `factorized`, and normalises them.

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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, inputs], H and W even, to [B, H / 2, W / 2, features]."""
        shape = (self.inputs, self.features // 2)
        kernels = [self.param(name, KERNEL_INIT, shape).astype(self.dtype)[None] for name in ("first", "second")]
        out = factorized(x.astype(self.dtype)[None], *kernels)[0]
        return BatchNorm(self.features, self.affine, self.dtype, name="norm")(out, train)


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
