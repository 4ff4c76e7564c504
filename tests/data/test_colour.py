"""Changes of colour against the formulas in NumPy, `colorsys`, and Pillow's own on bytes."""

import colorsys
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gaea_jax.data import IMAGENET_JITTER, Jitter, colour_jitter
from gaea_jax.data.colour import Changes, change_colours, draw_changes, turn_hue
from gaea_jax.errors import UsageError

NOTHING = Jitter(0, 0, 0, 0)
# Compiled, since each would otherwise compile its operations one by one.
jitter_colours = jax.jit(colour_jitter, static_argnums=2)
draw = jax.jit(draw_changes, static_argnums=(1, 2))
change_batch = jax.jit(change_colours)

ORDERS = list(itertools.product(itertools.permutations(range(3)), range(4)))
NAMES = ("brightness", "contrast", "saturation")


@pytest.fixture(scope="module")
def image():
    """Noise, and grey, black, white and the pure colours, where hue and saturation have their corners."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    pixels[0] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 255, 255]]
    pixels[1] = [[0, 255, 0], [0, 0, 255], [255, 0, 255], [255, 255, 0], [7, 7, 8]]
    return pixels


def changes(order=(0, 1, 2), hue_after=3, factors=(1.0, 1.0, 1.0), turn=0.0):
    return Changes(
        jnp.array([factors], jnp.float32), jnp.array([order]), jnp.array([hue_after]), jnp.array([turn], jnp.float32)
    )


def change(image, **what):
    return np.asarray(change_batch(jnp.asarray(image, jnp.float32)[None], changes(**what)))[0]


def hue_by_hand(image, turn):
    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    return 255 * np.apply_along_axis(turned, -1, image / 255)


def blend_by_hand(image, name, factor):
    luma = image @ np.array([0.299, 0.587, 0.114])
    other = {"brightness": 0, "contrast": luma.mean(), "saturation": luma[..., None]}[name]
    return np.clip(factor * image + (1 - factor) * other, 0, 255)


@pytest.mark.parametrize(("order", "hue_after"), ORDERS)
def test_every_order_is_the_formulas_one_after_another(image, order, hue_after):
    factors, turn = (1.3, 0.7, 1.35), -0.17
    expected = image.astype(float)
    for place, which in enumerate(order):
        if place == hue_after:
            expected = hue_by_hand(expected, turn)
        expected = blend_by_hand(expected, NAMES[which], factors[which])
    if hue_after == 3:
        expected = hue_by_hand(expected, turn)
    out = change(image, order=order, hue_after=hue_after, factors=factors, turn=turn)
    chex.assert_trees_all_close(out, expected, atol=0.02)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.4])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_blends_are_those_of_pillow(image, name, enhancer, factor):
    factors = [factor if name == other else 1.0 for other in NAMES]
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor))
    # Pillow rounds grey, its mean and the result to bytes, partly downwards.
    chex.assert_trees_all_close(change(image, factors=factors), expected.astype(float), atol=1.6)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.1, 1 / 3])
def test_the_turned_hue_is_that_of_colorsys(image, turn):
    out = np.asarray(turn_hue(jnp.asarray(image, jnp.float32)[None], jnp.array([turn])))[0]
    chex.assert_trees_all_close(out, hue_by_hand(image, turn), atol=0.01)


@pytest.mark.parametrize("turn", [0.0, 1.0, -1.0])
def test_no_turn_and_a_whole_turn_change_nothing(image, turn):
    chex.assert_trees_all_close(change(image, turn=turn), image.astype(np.float32), atol=1e-3)


def test_strengths_of_zero_change_nothing(image):
    out = jitter_colours(jax.random.key(0), jnp.stack([image, image[::-1]]), NOTHING)
    assert out.dtype == jnp.float32
    chex.assert_trees_all_close(np.asarray(out), np.stack([image, image[::-1]]).astype(np.float32), atol=1e-3)


def test_grey_stays_grey_and_colours_stay_in_range(image):
    grey = np.repeat(image[..., :1], 3, axis=2)
    batch = jnp.stack([grey, image] * 50)
    strong = np.asarray(jitter_colours(jax.random.key(1), batch, Jitter(2, 2, 2, 0.5)))
    assert (strong[::2] == strong[::2, ..., :1]).all()
    assert strong.min() == 0 and strong.max() == 255
    assert not (strong[1::2] == strong[1::2, ..., :1]).all((1, 2, 3)).any()


def test_all_orders_are_equally_likely_and_factors_uniform():
    drawn = jax.device_get(draw(jax.random.key(0), 4800, IMAGENET_JITTER))
    counts = np.zeros(len(ORDERS), int)
    for order, hue_after in zip(drawn.order.tolist(), drawn.hue_after.tolist(), strict=True):
        counts[ORDERS.index((tuple(order), hue_after))] += 1
    # 200 of each expected, with a deviation of 14.
    assert counts.min() > 140 and counts.max() < 260
    quarters = np.array([0.25, 0.5, 0.75])
    for factor in drawn.factors.T:
        assert factor.min() >= 0.6 and factor.max() <= 1.4
        chex.assert_trees_all_close(np.quantile(factor, quarters), 0.6 + 0.8 * quarters, atol=0.03)
    assert abs(drawn.turn).max() <= 0.2
    chex.assert_trees_all_close(np.quantile(drawn.turn, quarters), -0.2 + 0.4 * quarters, atol=0.015)
    values = np.column_stack([drawn.factors, drawn.order[:, 0], drawn.hue_after, drawn.turn])
    assert np.abs(np.corrcoef(values.T) - np.eye(6)).max() < 0.06


def test_a_factor_is_never_negative():
    assert draw(jax.random.key(0), 1000, Jitter(3, 3, 3, 0)).factors.min() >= 0


def test_changes_follow_from_the_key_and_differ_between_images(image):
    batch = jnp.stack([image] * 4)
    one, same, other = (jitter_colours(jax.random.key(seed), batch, IMAGENET_JITTER) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    assert not np.allclose(one, other)
    assert len({np.asarray(each).tobytes() for each in one}) == 4


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_strengths_that_cannot_be_drawn(name):
    strengths = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.1)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"jitter: {name} must be .*, not {wrong}"):
            Jitter(**{**strengths, name: wrong})
    with pytest.raises(UsageError, match=r"jitter: hue must be in 0\.\.0\.5, not 0\.6"):
        Jitter(**{**strengths, "hue": 0.6})


def test_images_that_have_no_such_colours(image):
    with pytest.raises(UsageError, match="jitter: needs images of 3 channels, not 1"):
        colour_jitter(jax.random.key(0), jnp.asarray(image)[None, ..., :1], NOTHING)
    with pytest.raises(UsageError, match=r"images: must be uint8 in 0\.\.255, not float32"):
        colour_jitter(jax.random.key(0), jnp.asarray(image, jnp.float32)[None], NOTHING)
