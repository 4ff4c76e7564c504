"""How a convolution or a pooling is lowered: the same values on every backend, in a form that each runs fast.

XLA's CPU backend rewrites convolutions to the one layout that its fast kernel takes, but only those of a program's
outermost computation. Inside a loop or a conditional the gradients that JAX writes, which are convolutions in other
layouts, fall back to a naive loop that is 6 to 80 times slower (jax-ml/jax#12868). So for the CPU they are written in
that layout from the start.

It has no fast kernel at all for depthwise convolutions and for the gradient of a maximum. Both are sums over the places
of the window, which on the CPU are written as such: a product of the shifted features for each place, which XLA fuses
into one pass. Each pass is kept apart from its neighbours: fused with them, it would compute them again for each place,
or be computed again for each of its users. Sums over all pixels, as the gradients of kernels are and the moments of
BatchNorm, are many in one pass over what they read, which XLA does not make of them by itself.

Depthwise and pointwise convolutions work on stacks of features, [m, B, H, W, C], with a kernel for each of the m: the
edges that leave a node, of which a few large operations are faster than many small ones.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

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
    return _sum_of_stack(of_x) if len(x) < len(g) else of_x, of_kernel


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Depthwise convolutions of a stack: each channel with a kernel of its own, padded so that stride 1 keeps the size.

    It has no forward-mode derivative, though its gradients have.

    Args:
      x: features [m, B, H, W, C], or [1, B, H, W, C] where the whole stack starts from the same.
      kernel: [m, k, k, C] with k odd, of the dtype of the features.
      stride: in both directions.
      dilation: of the kernel, in both directions.

    Returns:
      [m, B, ceil(H / stride), ceil(W / stride), C].
    """
    return _depthwise(x, kernel, stride, dilation)


# Compiled for itself, so that it is traced once for all calls with the same shapes; so are the others below.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=_apart(functools.partial(_depthwise_by_place, stride=stride, dilation=dilation)),
        default=functools.partial(_depthwise_grouped, stride=stride, dilation=dilation),
    )


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, stride, dilation), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _depthwise_backward(
    stride: int, dilation: int, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def of_x(g: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
        pad = dilation * (kernel.shape[1] // 2)
        seen = _spread(g, x.shape[2:4], stride, 2 * pad, pad, 0)
        return _sum_over_places(seen, kernel[:, ::-1, ::-1], 1, dilation)

    def by_place(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The sum over the stack apart from that over the places: XLA makes slow code of sums of a hundred terms.
        stack = _apart(of_x)(g, x, kernel)
        return (
            (_sum_of_stack(stack) if len(x) < len(g) else stack).astype(x.dtype),
            _of_depthwise_kernel(x, g, kernel, stride, dilation),
        )

    def usual(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pull_back = jax.vjp(functools.partial(_depthwise_grouped, stride=stride, dilation=dilation), x, kernel)
        return pull_back(g)

    return jax.lax.platform_dependent(*saved, g, cpu=by_place, default=usual)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_grouped(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """As a convolution whose groups are the channels of the whole stack."""
    m, k, _, channels = kernel.shape
    pad = dilation * (k // 2)
    x = jnp.broadcast_to(x, (m, *x.shape[1:]))
    out = jax.lax.conv_general_dilated(
        jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], m * channels),
        jnp.moveaxis(kernel, 0, 2).reshape(k, k, 1, m * channels),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
        feature_group_count=m * channels,
    )
    return jnp.moveaxis(out.reshape(*out.shape[:3], m, channels), 3, 0)


def _depthwise_by_place(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    pad = dilation * (kernel.shape[1] // 2)
    padded = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    return _sum_over_places(padded, kernel, stride, dilation).astype(x.dtype)


def _sum_over_places(padded: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Sum over the places of a kernel [m, k, k, C] of padded features, in float32 at least."""
    dtype = jnp.promote_types(padded.dtype, jnp.float32)
    places = _places(padded, kernel.shape[1], stride, dilation)
    terms = (part.astype(dtype) * kernel[:, i, j, None, None, None] for i, j, part in places)
    return functools.reduce(jnp.add, terms)


def _shifted(padded: jax.Array, axis: int, k: int, stride: int, dilation: int = 1) -> Iterator[jax.Array]:
    """For each of the k places of a window along one axis, what windows of padded features have there."""
    side = padded.shape[axis]
    count = -(-(side - (k - 1) * dilation) // stride)
    for first in range(0, k * dilation, dilation):
        yield jax.lax.slice_in_dim(padded, first, first + (count - 1) * stride + 1, stride, axis)


def _places(padded: jax.Array, k: int, stride: int, dilation: int = 1) -> Iterator[tuple[int, int, jax.Array]]:
    """For each place (i, j) of a window the features [..., h, w, C] that windows of padded features have there."""
    for i, rows in enumerate(_shifted(padded, padded.ndim - 3, k, stride, dilation)):
        for j, part in enumerate(_shifted(rows, padded.ndim - 2, k, stride, dilation)):
            yield i, j, part


def _spread(g: jax.Array, size: Sequence[int], stride: int, reach: int, pad: int, fill: float) -> jax.Array:
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


def _of_depthwise_kernel(x: jax.Array, g: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """The gradient of a depthwise kernel: for each of its places, the sum of products of features and g."""
    dtype = jnp.promote_types(g.dtype, jnp.float32)
    pad = dilation * (kernel.shape[1] // 2)
    padded = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    places = _places(padded, kernel.shape[1], stride, dilation)
    # With many sums, those of columns would no longer fit into the cache.
    sums = _sums(tuple(part.astype(dtype) * g.astype(dtype) for _, _, part in places), (2, 3))
    return jnp.stack(sums, axis=1).reshape(kernel.shape).astype(kernel.dtype)


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
    first, second = _sums((x, x * x))
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
    whole, of_factor = _sums((g, g * (x - each(centre))))
    of_x, of_centre = g * each(factor), -whole * factor
    if len(x) < len(g):
        of_x = _sum_of_stack(of_x)
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


def each(table: jax.Array) -> jax.Array:
    """Makes a table [m, C] fit features [m, B, H, W, C]."""
    return table[:, None, None, None]


def _sum_of_stack(stack: jax.Array) -> jax.Array:
    """[m, ...] to [1, ...]. Written out, since XLA's own sum over a short leading axis is many times slower."""
    return functools.reduce(jnp.add, stack)[None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sums(stacks: Sequence[jax.Array], first: tuple[int, ...] = (2,)) -> tuple[jax.Array, ...]:
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


@_sums.defjvp
def _sums_forward(first: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    # XLA's own sums, which can be transposed.
    sums = _sums(*primals, first)
    of = zip(sums, tangents[0], strict=True)
    return sums, tuple(tangent.sum((1, 2, 3), dtype=found.dtype) for found, tangent in of)


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
        for i, j, part in reversed(list(_places(_padded(x, window, -jnp.inf), window, stride))):
            winner = jnp.where(part == out, i * window + j, winner)
        where = x.shape[1:3], stride, window - 1, _pad(window)
        winners, gradients = (
            _places(_spread(table, *where, fill), window, 1) for table, fill in ((winner, -1), (g, 0))
        )
        terms = (
            jnp.where(place == window**2 - 1 - (i * window + j), part, 0)
            for (i, j, place), (_, _, part) in zip(winners, gradients, strict=True)
        )
        return functools.reduce(jnp.add, terms)

    def usual(x: jax.Array, out: jax.Array, g: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(functools.partial(_max_of_windows, window=window, stride=stride), x)
        return pull_back(g)[0]

    return (jax.lax.platform_dependent(*saved, g, cpu=_apart(by_place), default=usual),)


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
        seen = _spread(g, x.shape[1:3], stride, window - 1, _pad(window), 0)
        return _by_axis(jnp.add, seen, window, 1)

    def usual(g: jax.Array) -> jax.Array:
        (of_x,) = jax.linear_transpose(functools.partial(_sum_of_windows, window=window, stride=stride), x)(g)
        return of_x

    return (jax.lax.platform_dependent(g, cpu=_apart(by_place), default=usual),)


sum_pool.defvjp(_sum_forward, _sum_backward)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _pool(
    x: jax.Array, window: int, stride: int, by_place: Callable[..., jax.Array], of_windows: Callable[..., jax.Array]
) -> jax.Array:
    cpu, default = (functools.partial(run, window=window, stride=stride) for run in (by_place, of_windows))
    return jax.lax.platform_dependent(x, cpu=_apart(cpu), default=default)


def _max_by_place(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _by_axis(jnp.maximum, _padded(x, window, -jnp.inf), window, stride)


def _sum_by_place(x: jax.Array, window: int, stride: int) -> jax.Array:
    return _by_axis(jnp.add, _padded(x, window, 0), window, stride)


def _by_axis(
    combine: Callable[[jax.Array, jax.Array], jax.Array], padded: jax.Array, window: int, stride: int
) -> jax.Array:
    """Combines what each window of padded features sees, one axis after the other."""
    for axis in (1, 2):
        padded = functools.reduce(combine, _shifted(padded, axis, window, stride))
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


def _apart(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
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
