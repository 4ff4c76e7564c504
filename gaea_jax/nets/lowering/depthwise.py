"""Depthwise convolutions of a stack: sums over the places of the kernel on the CPU, grouped convolutions elsewhere."""

import functools

import jax
import jax.numpy as jnp

from gaea_jax.nets.lowering.sums import sum_of_stack, sums
from gaea_jax.nets.lowering.window import apart, places, spread


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


# Compiled for itself, so that it is traced once for all calls with the same shapes; so is the gradient.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=apart(functools.partial(_depthwise_by_place, stride=stride, dilation=dilation)),
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
        seen = spread(g, x.shape[2:4], stride, 2 * pad, pad, 0)
        return _sum_over_places(seen, kernel[:, ::-1, ::-1], 1, dilation)

    def by_place(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The sum over the stack apart from that over the places: XLA makes slow code of sums of a hundred terms.
        stack = apart(of_x)(g, x, kernel)
        return (
            (sum_of_stack(stack) if len(x) < len(g) else stack).astype(x.dtype),
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
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
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
    terms = (
        part.astype(dtype) * kernel[:, i, j, None, None, None]
        for i, j, part in places(padded, kernel.shape[1], stride, dilation)
    )
    return functools.reduce(jnp.add, terms)


def _of_depthwise_kernel(x: jax.Array, g: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """The gradient of a depthwise kernel: for each of its places, the sum of products of features and g."""
    dtype = jnp.promote_types(g.dtype, jnp.float32)
    pad = dilation * (kernel.shape[1] // 2)
    padded = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    products = (
        part.astype(dtype) * g.astype(dtype) for _, _, part in places(padded, kernel.shape[1], stride, dilation)
    )
    # With many sums, those of columns would no longer fit into the cache.
    found = sums(tuple(products), (2, 3))
    return jnp.stack(found, axis=1).reshape(kernel.shape).astype(kernel.dtype)
