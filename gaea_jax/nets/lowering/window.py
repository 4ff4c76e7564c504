"""The places of a window that moves over features, and how to keep what is made of them apart from its neighbours."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp


def shifted(padded: jax.Array, axis: int, k: int, stride: int, dilation: int = 1) -> Iterator[jax.Array]:
    """For each of the k places of a window along one axis, what windows of padded features have there."""
    side = padded.shape[axis]
    count = -(-(side - (k - 1) * dilation) // stride)
    for first in range(0, k * dilation, dilation):
        yield jax.lax.slice_in_dim(padded, first, first + (count - 1) * stride + 1, stride, axis)


def places(padded: jax.Array, k: int, stride: int, dilation: int = 1) -> Iterator[tuple[int, int, jax.Array]]:
    """For each place (i, j) of a window the features [..., h, w, C] that windows of padded features have there."""
    for i, rows in enumerate(shifted(padded, padded.ndim - 3, k, stride, dilation)):
        for j, part in enumerate(shifted(rows, padded.ndim - 2, k, stride, dilation)):
            yield i, j, part


def spread(g: jax.Array, size: Sequence[int], stride: int, reach: int, pad: int, fill: float) -> jax.Array:
    """Puts what is known of each window, [..., h, w, C], so that windows of the result see all that saw a pixel.

    Place (i, j) of such a window is what the pixel was place (k - 1 - i, k - 1 - j) of.

    Args:
      g: one value for each window of features that were padded by `pad`.
      size: height and width of the features.
      stride: of the windows.
      reach: distance of a window's first and last place.
      pad: see above.
      fill: for where no window was.

    Returns:
      [..., height + reach, width + reach, C].
    """
    ends = [side + pad - 1 - (count - 1) * stride for side, count in zip(size, g.shape[-3:-1], strict=True)]
    config = [(0, 0, 0)] * (g.ndim - 3) + [(reach - pad, end, stride - 1) for end in ends] + [(0, 0, 0)]
    return jax.lax.pad(g, jnp.asarray(fill, g.dtype), config)


def apart(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes a function of arrays a computation of its own, which XLA does not fuse with its neighbours.

    XLA:CPU drops optimisation barriers before it fuses; what it does keep apart is a branch that depends on a value.
    Where the first value is NaN, the result is NaN everywhere, as the next BatchNorm's batch statistics would make it.
    """

    def isolated(first: jax.Array, *others: jax.Array) -> jax.Array:
        out = jax.eval_shape(run, first, *others)

        def undefined(*_: jax.Array) -> jax.Array:
            return jnp.full(out.shape, jnp.nan, out.dtype)

        return jax.lax.cond(jnp.isnan(first[(0,) * first.ndim]), undefined, run, first, *others)

    return isolated
