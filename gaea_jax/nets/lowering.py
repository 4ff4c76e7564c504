"""How a convolution is lowered: the same values on every backend, in a form that each runs fast.

XLA's CPU backend rewrites convolutions to the one layout that its fast kernel takes, but only those of a program's
outermost computation. Inside a loop or a conditional the gradients that JAX writes, which are convolutions in other
layouts, fall back to a naive loop that is 6 to 80 times slower (jax-ml/jax#12868). So for the CPU they are written in
that layout from the start.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Pair = tuple[int, int]
Pairs = tuple[Pair, Pair]

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
            return of_x, jnp.einsum("bhwc,bhwd->cd", x, g, precision=precision)[None, None]
        channels = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3))
        of_w = _plain(*channels, dilation, (rows_w, columns_w), grown, strides, precision)
        return of_x, jnp.transpose(of_w, (1, 2, 0, 3))

    def usual(x: jax.Array, w: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pull_back = jax.vjp(lambda x, w: _plain(x, w, strides, padding, grown, dilation, precision), x, w)
        return pull_back(g)

    return jax.lax.platform_dependent(*saved, g, cpu=canonical, default=usual)


_conv.defvjp(_forward, _backward)
