"""Maximum and sum over windows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaea_jax.nets.lowering.window import apart, places, shifted, spread


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Maximum over a square window; the gradient goes to the first of equal values, row after row.

    It has no forward-mode derivative, though its gradient has.

    Args:
      x: [B, H, W, C].
      window: side of the window; where it is odd, the padding is ``window // 2`` a side and never the maximum.
      stride: in both directions.

    Returns:
      [B, H', W', C] of the type of x; H' is ceil(H / stride) if the window is odd, H // stride if it is the stride.
    """
    return _max(x, window, stride)


def _max(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _pool(x, window, stride, _max_by_place, _max_of_windows)


def _max_forward(x: jax.Array, window: int, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    out = _max(x, window, stride)
    return out, (x, out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _max_backward(window: int, stride: int, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    def by_place(x: jax.Array, out: jax.Array, g: jax.Array) -> jax.Array:
        winner = jnp.full(out.shape, -1, jnp.int32)
        for i, j, part in reversed(list(places(_padded(x, window, -jnp.inf), window, stride))):
            winner = jnp.where(part == out, i * window + j, winner)
        where = x.shape[1:3], stride, window - 1, _pad(window)
        winners, gradients = (places(spread(table, *where, fill), window, 1) for table, fill in ((winner, -1), (g, 0)))
        terms = (
            jnp.where(place == window**2 - 1 - (i * window + j), part, 0)
            for (i, j, place), (_, _, part) in zip(winners, gradients, strict=True)
        )
        return functools.reduce(jnp.add, terms)

    def usual(x: jax.Array, out: jax.Array, g: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(functools.partial(_max_of_windows, window=window, stride=stride), x)
        return pull_back(g)[0]

    return (jax.lax.platform_dependent(*saved, g, cpu=apart(by_place), default=usual),)


max_pool.defvjp(_max_forward, _max_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def sum_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Sum over a square window.

    It has no forward-mode derivative, though its gradient has.

    Args:
      x: [B, H, W, C].
      window: side of the window; where it is odd, the padding is ``window // 2`` zeros a side.
      stride: in both directions.

    Returns:
      [B, H', W', C] of the type of x; H' is ceil(H / stride) if the window is odd, H // stride if it is the stride.
    """
    return _sum(x, window, stride)


def _sum(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _pool(x, window, stride, _sum_by_place, _sum_of_windows)


def _sum_forward(x: jax.Array, window: int, stride: int) -> tuple[jax.Array, jax.Array]:
    return _sum(x, window, stride), x


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sum_backward(window: int, stride: int, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    def by_place(g: jax.Array) -> jax.Array:
        seen = spread(g, x.shape[1:3], stride, window - 1, _pad(window), 0)
        return _by_axis(jnp.add, seen, window, 1)

    def usual(g: jax.Array) -> jax.Array:
        (of_x,) = jax.linear_transpose(functools.partial(_sum_of_windows, window=window, stride=stride), x)(g)
        return of_x

    return (jax.lax.platform_dependent(g, cpu=apart(by_place), default=usual),)


sum_pool.defvjp(_sum_forward, _sum_backward)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _pool(
    x: jax.Array, window: int, stride: int, by_place: Callable[..., jax.Array], of_windows: Callable[..., jax.Array]
) -> jax.Array:
    cpu, default = (functools.partial(run, window=window, stride=stride) for run in (by_place, of_windows))
    return jax.lax.platform_dependent(x, cpu=apart(cpu), default=default)


def _max_by_place(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _by_axis(jnp.maximum, _padded(x, window, -jnp.inf), window, stride)


def _sum_by_place(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _by_axis(jnp.add, _padded(x, window, 0), window, stride)


def _by_axis(
    combine: Callable[[jax.Array, jax.Array], jax.Array], padded: jax.Array, window: int, stride: int
) -> jax.Array:
    """Combines what each window of padded features sees, one axis after the other."""
    for axis in (1, 2):
        padded = functools.reduce(combine, shifted(padded, axis, window, stride))
    return padded


def _sum_of_windows(x: jax.Array, window: int, stride: int) -> jax.Array:
    pad = (_pad(window), _pad(window))
    return nn.pooling.pool(x, 0.0, jax.lax.add, (window, window), (stride, stride), (pad, pad))


def _max_of_windows(x: jax.Array, window: int, stride: int) -> jax.Array:
    pad = (_pad(window), _pad(window))
    return nn.max_pool(x, (window, window), (stride, stride), (pad, pad))


def _pad(window: int) -> int:
    return window // 2 if window % 2 else 0


def _padded(x: jax.Array, window: int, fill: float) -> jax.Array:
    pad = _pad(window)
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
