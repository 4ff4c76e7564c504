"""Dense convolutions, and 1x1 ones of a stack."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gaea_jax.nets.lowering.sums import sum_of_stack

Pair = tuple[int, int]
Pairs = tuple[Pair, Pair]

# Numbers in a part of a batch; half a megabyte in float32.
_PART = 2**17
_LAYOUT = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: jax.lax.ConvDimensionNumbers = _LAYOUT,
    feature_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """A two-dimensional convolution, as `jax.lax.conv_general_dilated` computes it.

    To be handed to `flax.linen.Conv`. It has no forward-mode derivative; its gradients have both, of which the forward
    one (as in a product of Hessian and vector, ``jvp`` of ``grad``) keeps to the fast layout.

    Args:
      lhs: features [B, H, W, C].
      rhs: kernel [h, w, C, D], of the dtype of the features.
      window_strides: strides in both directions.
      padding: pixels before and after, in both directions.
      lhs_dilation: dilation of the features in both directions, 1 by default.
      rhs_dilation: dilation of the kernel in both directions, 1 by default.
      dimension_numbers: the layout above.
      feature_group_count: 1.
      precision: as in `jax.lax.conv_general_dilated`.

    Returns:
      [B, H', W', D].

    Raises:
      NotImplementedError: another layout, or more than one group.
    """
    if dimension_numbers != _LAYOUT or feature_group_count != 1:
        raise NotImplementedError("this lowering is for one group of NHWC features and an HWIO kernel")
    return _conv(
        lhs,
        rhs,
        _pair(window_strides),
        (_pair(padding[0]), _pair(padding[1])),
        _pair(lhs_dilation or (1, 1)),
        _pair(rhs_dilation or (1, 1)),
        precision,
    )


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)


def _plain(
    x: jax.Array,
    w: jax.Array,
    strides: Pair,
    padding: Pairs,
    grown: Pair,
    dilation: Pair,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """The convolution with JAX's own gradients; `grown` is the dilation of the features, `dilation` of the kernel."""
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, grown, dilation, dimension_numbers=_LAYOUT, precision=precision
    )


_conv = jax.custom_vjp(_plain, nondiff_argnums=(2, 3, 4, 5, 6))


def _forward(x: jax.Array, w: jax.Array, *how: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _plain(x, w, *how), (x, w)


def _backward(
    strides: Pair,
    padding: Pairs,
    grown: Pair,
    dilation: Pair,
    precision: jax.lax.PrecisionLike,
    saved: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def canonical(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        def paddings(axis: int) -> Pairs:
            # Sizes with the dilation in them.
            kernel = (w.shape[axis] - 1) * dilation[axis] + 1
            features = (x.shape[1 + axis] - 1) * grown[axis] + 1
            result = (g.shape[1 + axis] - 1) * strides[axis] + 1
            low = padding[axis][0]
            return (kernel - 1 - low, features - result + low), (low, result + kernel - features - 1 - low)

        (rows_x, rows_w), (columns_x, columns_w) = paddings(0), paddings(1)
        turned = jnp.transpose(w[::-1, ::-1], (0, 1, 3, 2))
        of_x = _plain(g, turned, grown, (rows_x, columns_x), strides, dilation, precision)
        if w.shape[:2] == strides == grown == (1, 1) and padding == ((0, 0), (0, 0)):
            # A matrix product, which the fast kernel does not see in it.
            return of_x, _of_pointwise_kernel(x[None], g[None], precision)[None]

        def of_part(x: jax.Array, g: jax.Array) -> jax.Array:
            channels = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3))
            return _plain(*channels, dilation, (rows_w, columns_w), grown, strides, precision)

        of_w = functools.reduce(jnp.add, map(of_part, *(jnp.split(a, _parts(g)) for a in (x, g))))
        return of_x, jnp.transpose(of_w, (1, 2, 0, 3))

    def usual(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pull_back = jax.vjp(lambda x, w: _plain(x, w, strides, padding, grown, dilation, precision), x, w)
        return pull_back(g)

    return jax.lax.platform_dependent(*saved, g, cpu=canonical, default=usual)


_conv.defvjp(_forward, _backward)


def _parts(g: jax.Array) -> int:
    """How many parts of a batch the gradient of a kernel is made of: it reads each again and again, from a cache."""
    small = (n for n in range(1, len(g) + 1) if len(g) % n == 0 and g.size <= n * _PART)
    return next(small, len(g))


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolutions of a stack.

    It has no forward-mode derivative, though its gradients have.

    Args:
      x: features [m, B, H, W, C], or [1, B, H, W, C] where the whole stack starts from the same.
      kernel: [m, C, D], of the dtype of the features.

    Returns:
      [m, B, H, W, D].
    """
    return _pointwise(x, kernel)


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("mbhwc,mcd->mbhwd", jnp.broadcast_to(x, (len(kernel), *x.shape[1:])), kernel)


def _pointwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = _pointwise(g, jnp.swapaxes(kernel, 1, 2))
    of_kernel = _of_pointwise_kernel(jnp.broadcast_to(x, (len(kernel), *x.shape[1:])), g)
    return sum_of_stack(of_x) if len(x) < len(g) else of_x, of_kernel


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _of_pointwise_kernel(x: jax.Array, g: jax.Array, precision: jax.lax.PrecisionLike = None) -> jax.Array:
    """The gradient of 1x1 kernels: over all pixels, the sum of products of features and g, [m, C, D].

    On the CPU one matrix product would have XLA write both down transposed first. Over blocks of pixels it has not.
    """

    def whole(x: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.einsum("mbhwc,mbhwd->mcd", x, g, precision=precision)

    def by_block(x: jax.Array, g: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        block = math.gcd(math.prod(x.shape[1:4]), 256)
        blocks = (a.reshape(len(a), -1, block, a.shape[-1]) for a in (x, g))
        products = jnp.einsum("mnkc,mnkd->mncd", *blocks, precision=precision, preferred_element_type=dtype)
        rows = products.reshape(*products.shape[:2], -1)
        out = jnp.einsum("mnr,n->mr", rows, jnp.ones(rows.shape[1], dtype))
        return out.reshape(len(x), x.shape[-1], g.shape[-1]).astype(x.dtype)

    return jax.lax.platform_dependent(x, g, cpu=by_block, default=whole)
