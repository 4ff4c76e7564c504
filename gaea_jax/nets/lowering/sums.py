"""Sums over pixels and over stacks, and what they are the gradients of: moments, scaling, members of a sum."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gaea_jax.nets.lowering.window import apart


def each(table: jax.Array) -> jax.Array:
    """Makes a table [m, C] fit features [m, B, H, W, C]."""
    return table[:, None, None, None]


def sum_of_stack(stack: jax.Array) -> jax.Array:
    """[m, ...] to [1, ...]. Written out, since XLA's own sum over a short leading axis is many times slower."""
    return functools.reduce(jnp.add, stack)[None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sums(stacks: Sequence[jax.Array], first: tuple[int, ...] = (2,)) -> tuple[jax.Array, ...]:
    """Sums of stacks [m, B, H, W, C] over images and pixels, [m, C] each, in float32 at least.

    On the CPU one pass makes all of them, so that what several need is read once. It adds up over the axes `first`, and
    what little is left is added up after that: one axis is many times faster than all.
    """
    stacks = tuple(stack.astype(jnp.promote_types(stack.dtype, jnp.float32)) for stack in stacks)

    def together(*stacks: jax.Array) -> tuple[jax.Array, ...]:
        def add(some: Sequence[jax.Array], others: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
            return tuple(one + other for one, other in zip(some, others, strict=True))

        zeros = tuple(jnp.zeros((), stack.dtype) for stack in stacks)
        partial: Sequence[jax.Array] = jax.lax.reduce(stacks, zeros, add, first)
        return tuple(found.reshape(len(found), -1, found.shape[-1]).sum(1) for found in partial)

    def one_by_one(*stacks: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(stack.sum((1, 2, 3)) for stack in stacks)

    return jax.lax.platform_dependent(*stacks, cpu=together, default=one_by_one)


@sums.defjvp
def _sums_forward(first: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    # XLA's own sums, which can be transposed.
    found = sums(*primals, first)
    of = zip(found, tangents[0], strict=True)
    return found, tuple(tangent.sum((1, 2, 3), dtype=total.dtype) for total, tangent in of)


@jax.custom_vjp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and mean of squares of a stack, over images and pixels.

    They have no forward-mode derivative, though their gradients have.

    Args:
      x: features [m, B, H, W, C].

    Returns:
      [m, C] each.
    """
    return _moments(x)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    count = math.prod(x.shape[1:4])
    first, second = sums((x, x * x))
    return first / count, second / count


def _moments_forward(x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    return _moments(x), x


def _moments_backward(x: jax.Array, g: tuple[jax.Array, jax.Array]) -> tuple[jax.Array]:
    first, second = (table / math.prod(x.shape[1:4]) for table in g)
    return (each(first) + 2 * x * each(second),)


moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def scale(x: jax.Array, centre: jax.Array, factor: jax.Array) -> jax.Array:
    """Shifts and scales each channel of a stack: ``(x - centre) * factor``.

    It has no forward-mode derivative, though its gradients have.

    Args:
      x: features [m, B, H, W, C], or [1, B, H, W, C] where the whole stack starts from the same.
      centre: [m, C], or [1, C] for all.
      factor: [m, C].

    Returns:
      [m, B, H, W, C].
    """
    return _scale(x, centre, factor)


def _scale(x: jax.Array, centre: jax.Array, factor: jax.Array) -> jax.Array:
    return (x - each(centre)) * each(factor)


def _scale_forward(
    x: jax.Array, centre: jax.Array, factor: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return _scale(x, centre, factor), (x, centre, factor)


def _scale_backward(
    saved: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, centre, factor = saved
    whole, of_factor = sums((g, g * (x - each(centre))))
    of_x, of_centre = g * each(factor), -whole * factor
    if len(x) < len(g):
        of_x = sum_of_stack(of_x)
    if len(centre) < len(g):
        of_centre = of_centre.sum(0, keepdims=True)
    return of_x.astype(x.dtype), of_centre.astype(centre.dtype), of_factor.astype(factor.dtype)


scale.defvjp(_scale_forward, _scale_backward)


@jax.custom_vjp
def members_of_sum(*stacks: jax.Array) -> list[jax.Array]:
    """The members of the sum of stacks.

    They have no forward-mode derivative, though their gradients have: these are one stack, which JAX would make of a
    padded one for each member.

    Args:
      stacks: [m, ...] each.

    Returns:
      m arrays [...].
    """
    return _members_of_sum(*stacks)


def _members_of_sum(*stacks: jax.Array) -> list[jax.Array]:
    return [functools.reduce(jnp.add, members) for members in zip(*stacks, strict=True)]


def _members_forward(*stacks: jax.Array) -> tuple[list[jax.Array], list[None]]:
    return _members_of_sum(*stacks), [None] * len(stacks)


def _members_backward(of_stacks: list[None], g: list[jax.Array]) -> tuple[jax.Array, ...]:
    return (jnp.stack(g),) * len(of_stacks)


members_of_sum.defvjp(_members_forward, _members_backward)


@jax.custom_vjp
def gradient_once(x: jax.Array) -> jax.Array:
    """The same features, whose gradient is made once.

    XLA:CPU fuses additions into all that needs their sum, each of which makes it again. Where features reach the output
    by many ways, as those of a node do, whose edges may skip, each would add up the gradients of all later nodes.

    It has no forward-mode derivative, though its gradient has.

    Args:
      x: features.

    Returns:
      x.
    """
    return x


def _gradient_once_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _gradient_once_backward(_: None, g: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.platform_dependent(g, cpu=apart(lambda g: g), default=lambda g: g),)


gradient_once.defvjp(_gradient_once_forward, _gradient_once_backward)
