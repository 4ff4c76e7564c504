import itertools
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gaea_jax.nets.lowering import (
    conv_general_dilated,
    convolution,
    depthwise,
    gradient_once,
    max_pool,
    members_of_sum,
    moments,
    pointwise,
    scale,
    sum_pool,
)

LAYOUT = ("NHWC", "HWIO", "NHWC")


def usual(x: jax.Array, w: jax.Array, *how: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, *how, dimension_numbers=LAYOUT)


def both_orders(run: Callable[..., Any], *at: Any) -> Any:
    """What a function returns, gradients of a function of it, and their derivative in a direction."""

    def first(*at: jax.Array) -> Any:
        def loss(*at: jax.Array) -> jax.Array:
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run(*at)))

        return jax.grad(loss, tuple(range(len(at))))(*at)

    def everything(*at: jax.Array) -> Any:
        return run(*at), first(*at), jax.jvp(first, at, jax.tree.map(jnp.cos, at))[1]

    return jax.jit(everything)(*at)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "side"),
    [(1, 1, 1, 5), (3, 1, 1, 6), (3, 2, 1, 8), (3, 2, 1, 7), (1, 2, 1, 7), (5, 3, 1, 8), (3, 1, 2, 7), (3, 2, 2, 8)],
)
def test_gradients_of_first_and_second_order_are_those_of_jax(
    kernel: int, stride: int, dilation: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_PART", 10 * side)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, side, side + 1, 3)), rng.normal(size=(kernel, kernel, 3, 4))
    pad = kernel // 2
    how = ((stride, stride), ((pad, pad), (pad, pad + 1)), (1, 1), (dilation, dilation))

    def gradients(conv: Any) -> Any:
        def first(x: jax.Array, w: jax.Array) -> Any:
            return jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w, *how))), (0, 1))(x, w)

        def second(x: jax.Array, w: jax.Array) -> jax.Array:
            return sum(jnp.sum(jnp.cos(leaf)) for leaf in first(x, w))

        def forward_over_reverse(x: jax.Array, w: jax.Array) -> Any:
            return jax.jvp(first, (x, w), (jnp.cos(x), jnp.cos(w)))[1]

        def everything(x: jax.Array, w: jax.Array) -> Any:
            return conv(x, w, *how), first(x, w), jax.grad(second, (0, 1))(x, w), forward_over_reverse(x, w)

        return jax.jit(everything)(x, w)

    with jax.enable_x64(True):
        chex.assert_trees_all_close(gradients(conv_general_dilated), gradients(usual), rtol=1e-9, atol=1e-9)


def test_flax_convolutions_take_it() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)), jnp.bfloat16)
    for strides, dtype in itertools.product((1, 2), (jnp.float32, jnp.bfloat16)):
        ours, flax = (
            nn.Conv(4, (3, 3), strides, padding=1, use_bias=False, dtype=dtype, **lowered)
            for lowered in ({"conv_general_dilated": conv_general_dilated}, {})
        )
        variables = flax.init(jax.random.key(0), x)
        value, reference = ours.apply(variables, x), flax.apply(variables, x)
        assert value.dtype == dtype
        chex.assert_trees_all_equal(value, reference)


def test_inside_a_loop_and_a_branch_every_convolution_is_in_the_layout_of_the_fast_kernel() -> None:
    def layouts(conv: Any) -> set[str]:
        def loss(w: jax.Array, x: jax.Array) -> jax.Array:
            def layer(x: jax.Array) -> jax.Array:
                return jnp.tanh(conv(x, w, (1, 1), ((1, 1), (1, 1))))

            x = jax.lax.cond(jnp.sum(x) > 0, layer, lambda x: x, x)
            return jnp.sum(jax.lax.scan(lambda x, _: (layer(x), None), x, length=2)[0])

        at = jnp.ones((3, 3, 4, 4)), jnp.ones((2, 8, 8, 4))
        first = jax.grad(loss, (0, 1))
        text = jax.jit(lambda w, x: jax.jvp(first, (w, x), (w, x))).lower(*at).compile().as_text()
        return set(re.findall(r"dim_labels=(\S+?)[,\s]", text))

    assert layouts(conv_general_dilated) == {"b01f_01io->b01f"}
    # What the lowering is for: where this fails, XLA has learnt to do it itself.
    assert len(layouts(usual)) > 1


def test_other_layouts_and_groups_are_refused() -> None:
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 1, 1, 2))
    with pytest.raises(NotImplementedError, match="one group of NHWC features and an HWIO kernel"):
        conv_general_dilated(x, w, (1, 1), ((0, 0), (0, 0)), feature_group_count=2)
    with pytest.raises(NotImplementedError, match="one group of NHWC"):
        numbers = jax.lax.ConvDimensionNumbers((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))
        conv_general_dilated(x, w, (1, 1), ((0, 0), (0, 0)), dimension_numbers=numbers)


def each_depthwise(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """One grouped convolution a member of the stack."""
    pad = dilation * (kernel.shape[1] // 2)
    how = ((stride, stride), ((pad, pad), (pad, pad)), (1, 1), (dilation, dilation))
    stack = jnp.broadcast_to(x, (len(kernel), *x.shape[1:]))
    return jnp.stack(
        [
            jax.lax.conv_general_dilated(
                one, k[:, :, None], *how, dimension_numbers=LAYOUT, feature_group_count=x.shape[-1]
            )
            for one, k in zip(stack, kernel, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("members", "shared", "kernel", "stride", "dilation", "side"),
    [
        (1, True, 3, 1, 1, 6),
        (3, True, 5, 1, 1, 8),
        (3, False, 3, 2, 1, 7),
        (2, True, 3, 2, 2, 8),
        (2, False, 5, 1, 2, 6),
    ],
)
def test_depthwise_and_its_gradients_of_both_orders_are_those_of_a_grouped_convolution(
    members: int, shared: bool, kernel: int, stride: int, dilation: int, side: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1 if shared else members, 8, side, side + 1, 3))
    k = rng.normal(size=(members, kernel, kernel, 3))

    def run(convolve: Any) -> Any:
        return both_orders(lambda x, k: convolve(x, k, stride, dilation), x, k)

    with jax.enable_x64(True):
        chex.assert_trees_all_close(run(depthwise), run(each_depthwise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("members", "shared", "images", "side"), [(1, False, 4, 8), (3, False, 2, 5), (3, True, 2, 5)])
def test_pointwise_and_its_gradients_of_both_orders_are_those_of_a_matrix_product(
    members: int, shared: bool, images: int, side: int
) -> None:
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(1 if shared else members, images, side, side, 3)), rng.normal(size=(members, 3, 4))

    def product(x: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.einsum("mbhwc,mcd->mbhwd", jnp.broadcast_to(x, (members, *x.shape[1:])), k)

    with jax.enable_x64(True):
        chex.assert_trees_all_close(both_orders(pointwise, x, k), both_orders(product, x, k), rtol=1e-9, atol=1e-9)


def test_moments_and_their_gradients_of_both_orders_are_those_of_means() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 6, 3))

    def means(x: jax.Array) -> Any:
        return x.mean((1, 2, 3)), (x * x).mean((1, 2, 3))

    with jax.enable_x64(True):
        chex.assert_trees_all_close(both_orders(moments, x), both_orders(means, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("of_x", "of_centre"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_scale_and_its_gradients_of_both_orders_are_those_of_the_formula(of_x: int, of_centre: int) -> None:
    rng = np.random.default_rng(0)
    at = rng.normal(size=(of_x, 4, 5, 6, 2)), rng.normal(size=(of_centre, 2)), rng.normal(size=(3, 2))

    def formula(x: jax.Array, centre: jax.Array, factor: jax.Array) -> jax.Array:
        return (x - centre[:, None, None, None]) * factor[:, None, None, None]

    with jax.enable_x64(True):
        chex.assert_trees_all_close(both_orders(scale, *at), both_orders(formula, *at), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_factor_is_summed_in_float32() -> None:
    x = jnp.ones((1, 4, 32, 32, 2), jnp.bfloat16)

    def loss(factor: jax.Array) -> jax.Array:
        return scale(x, jnp.zeros((1, 2), x.dtype), factor).astype(float).sum()

    gradient = jax.grad(loss)(jnp.ones((3, 2), x.dtype))
    chex.assert_trees_all_equal(gradient, jnp.full((3, 2), 4096, x.dtype))


def test_members_of_a_sum_have_the_gradients_of_both_orders_of_its_rows() -> None:
    rng = np.random.default_rng(0)
    at = [rng.normal(size=(3, 2, 4)) for _ in range(4)]

    def rows(*stacks: jax.Array) -> Any:
        return list(sum(stacks))

    with jax.enable_x64(True):
        ours = both_orders(members_of_sum, *at)
        chex.assert_trees_all_close(ours, both_orders(rows, *at), rtol=1e-12)


def test_a_gradient_that_is_made_once_is_the_gradient_in_both_orders() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3))

    def chain(once: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        def run(x: jax.Array) -> jax.Array:
            for _ in range(3):
                x = once(x + jnp.tanh(x) + x * x)
            return x

        return run

    with jax.enable_x64(True):
        ours = both_orders(chain(gradient_once), x)
        chex.assert_trees_all_close(ours, both_orders(chain(lambda x: x), x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "stride", "side"), [(3, 1, 6), (3, 2, 6), (3, 2, 7), (2, 2, 6), (2, 2, 7)])
def test_sum_pool_and_its_gradients_of_both_orders_are_those_of_flax(window: int, stride: int, side: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, side, side + 1, 3))
    pad = window // 2 if window % 2 else 0

    def usual(x: jax.Array) -> jax.Array:
        return window**2 * nn.avg_pool(x, (window, window), (stride, stride), ((pad, pad), (pad, pad)))

    with jax.enable_x64(True):
        ours = both_orders(lambda x: sum_pool(x, window, stride), x)
        chex.assert_trees_all_close(ours, both_orders(usual, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "stride", "side"), [(3, 1, 6), (3, 2, 6), (3, 2, 7), (2, 2, 6), (2, 2, 7)])
def test_max_pool_and_its_gradient_are_those_of_jax_with_ties(window: int, stride: int, side: int) -> None:
    x = np.random.default_rng(0).integers(-2, 3, (2, side, side + 1, 3)).astype(float)
    pad = window // 2 if window % 2 else 0

    def usual(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (window, window), (stride, stride), ((pad, pad), (pad, pad)))

    def both(pool: Any) -> Any:
        first = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x) + 0.1) * (jnp.arange(3.0) + 1)))
        return jax.jit(lambda x: (pool(x), first(x), jax.jvp(first, (x,), (jnp.cos(x),))[1]))(x)

    with jax.enable_x64(True):
        chex.assert_trees_all_close(both(lambda x: max_pool(x, window, stride)), both(usual), rtol=1e-12)


def test_stacks_keep_the_type_and_can_be_mapped() -> None:
    x, k = jnp.ones((1, 2, 4, 4, 3), jnp.bfloat16), jnp.ones((2, 3, 3, 3), jnp.bfloat16)
    chex.assert_shape(depthwise(x, k), (2, 2, 4, 4, 3))
    assert float(depthwise(x, k)[0, 0, 1, 1, 0]) == 9
    across = pointwise(depthwise(x, k), jnp.ones((2, 3, 5), jnp.bfloat16))
    chex.assert_shape(across, (2, 2, 4, 4, 5))
    chex.assert_type([depthwise(x, k), max_pool(x[0], 3, 1), across], jnp.bfloat16)
    mapped = jax.vmap(lambda x: depthwise(x, k))(jnp.stack([x, 2 * x]))
    chex.assert_trees_all_equal(mapped, jnp.stack([depthwise(x, k), depthwise(2 * x, k)]))


@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (0, 1, 2, 2, 1)])
def test_what_is_not_a_number_stays_so(place: tuple[int, ...]) -> None:
    x = jnp.zeros((1, 2, 4, 4, 2)).at[place].set(jnp.nan)
    for out in (depthwise(x, jnp.ones((1, 3, 3, 2))), max_pool(x[0], 3, 1)[None]):
        assert jnp.isnan(out[place])
