"""Crops of images of any size, against torchvision's rules and a resampling filter written out in NumPy."""

import io
import math
import warnings

import chex
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gaea_jax.data.resize import centre_crop, decode, random_box, random_crop

SIDES = st.integers(1, 600)


def file(image, file_format, **options):
    data = io.BytesIO()
    image.save(data, file_format, **options)
    return data.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def box_by_loop(height, width, draws):
    """torchvision's RandomResizedCrop, with its uniform numbers given."""
    for area, shape, row, column in draws.tolist():
        target = height * width * (0.08 + area * (1.0 - 0.08))
        ratio = math.exp(math.log(3 / 4) + shape * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(row * (height - h + 1)), math.floor(column * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_by_hand(image, height, width):
    """Bilinear with a filter as wide as the pixels of the smaller image; float64, [height, width, channels]."""

    def weights(old, new):
        scale = old / new
        centres, pixels = (np.arange(new)[:, None] + 0.5) * scale, np.arange(old) + 0.5
        weights = np.maximum(0, 1 - np.abs(pixels - centres) / max(scale, 1))
        return weights / weights.sum(axis=1, keepdims=True)

    old_height, old_width, _ = image.shape
    rows = np.tensordot(weights(old_height, height), image.astype(float), axes=1)
    return np.moveaxis(np.tensordot(weights(old_width, width), rows, axes=(1, 1)), 0, 1)


@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_a_random_box_is_that_of_torchvision_and_lies_in_the_image(height, width, seed):
    draws = np.random.default_rng(seed).random((10, 4), np.float32)
    top, left, inner_height, inner_width = box = random_box(height, width, draws)
    assert box == box_by_loop(height, width, draws)
    assert inner_height >= 1 and inner_width >= 1
    assert 0 <= top <= height - inner_height and 0 <= left <= width - inner_width


def test_random_boxes_have_all_areas_shapes_and_places():
    draws = np.random.default_rng(0).random((4000, 10, 4), np.float32)
    top, left, height, width = np.array([random_box(1000, 1000, one) for one in draws]).T
    area, ratio = height * width / 1000**2, np.log(width / height)
    assert 0.079 < area.min() < 0.085 and area.max() > 0.95
    assert -math.log(4 / 3) - 0.01 < ratio.min() < -0.27 and 0.27 < ratio.max() < math.log(4 / 3) + 0.01
    # Small areas fit whatever their shape, so among them both are uniform.
    small = area < 0.5
    chex.assert_trees_all_close(np.quantile(area[small], 0.5), 0.29, atol=0.02)
    assert abs(ratio[small].mean()) < 0.02
    for first, side in ((top, height), (left, width)):
        places = first[small] / (1000 - side[small])
        chex.assert_trees_all_close(np.quantile(places, [0.25, 0.5, 0.75]), np.array([0.25, 0.5, 0.75]), atol=0.04)


LAST = np.float32(1 - 2**-24)


def test_the_first_try_that_fits_is_taken_and_its_place_may_be_the_last():
    too_wide, fits = (1, 1, 0, 0), (0.1, 0.5, LAST, LAST)
    draws = np.array([too_wide] * 3 + [fits] + [(0.2, 0.5, 0, 0)] * 6, np.float32)
    # 0.172 of 100x120 is 2064 pixels, so 45x45.
    assert random_box(100, 120, draws) == (55, 75, 45, 45)


@pytest.mark.parametrize(
    ("height", "width", "middle"),
    [
        (100, 100, (0, 0, 100, 100)),
        (100, 130, (0, 0, 100, 130)),
        (10, 1000, (0, 493, 10, 13)),
        (1000, 10, (493, 0, 13, 10)),
        (1, 50, (0, 24, 1, 1)),
    ],
)
def test_where_no_try_fits_the_middle_is_taken(height, width, middle):
    # Of all the area, as a square stretched to 4/3 or 3/4.
    tries = [(LAST, shape, 0, 0) for shape in (0, LAST)] * 5
    assert random_box(height, width, np.array(tries, np.float32)) == middle


@pytest.mark.parametrize(("height", "width"), [(50, 80), (21, 9), (5, 5)])
def test_a_random_crop_is_the_resized_box(height, width):
    pixels = noise(height, width)
    for seed in range(5):
        draws = np.random.default_rng(seed).random((10, 4), np.float32)
        top, left, h, w = box_by_loop(height, width, draws)
        out = random_crop(Image.fromarray(pixels), 12, draws)
        assert out.dtype == np.uint8 and out.shape == (12, 12, 3)
        expected = resized_by_hand(pixels[top : top + h, left : left + w], 12, 12)
        # Pillow rounds to bytes twice, after the rows and after the columns.
        chex.assert_trees_all_close(out.astype(float), expected, atol=1.1)


@pytest.mark.parametrize(
    ("size", "height", "width", "resized", "corner"),
    [(224, 375, 500, (256, 341), (16, 58)), (7, 16, 33, (8, 16), (0, 4)), (14, 9, 4, (36, 16), (11, 1))],
)
def test_a_centre_crop_is_the_middle_of_the_resized_image(size, height, width, resized, corner):
    pixels, (top, left) = noise(height, width), corner
    out = centre_crop(Image.fromarray(pixels), size)
    assert out.dtype == np.uint8 and out.shape == (size, size, 3)
    expected = resized_by_hand(pixels, *resized)[top : top + size, left : left + size]
    chex.assert_trees_all_close(out.astype(float), expected, atol=1.1)


def test_a_centre_crop_of_a_ramp_is_the_ramp():
    ramp = np.zeros((28, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = 4 * np.arange(64), 8 * np.arange(28)[:, None]
    # 28x64 becomes 16x36, of which 14x14 are left from row 1 and column 11 on; pixel i has its middle at (i + 1/2) 7/4.
    out = centre_crop(Image.fromarray(ramp), 14)
    middles = (np.arange(36) + 0.5) * 28 / 16 - 0.5
    columns = (np.arange(36) + 0.5) * 64 / 36 - 0.5
    chex.assert_trees_all_close(out[..., 0].astype(float), np.tile(4 * columns[11:25], (14, 1)), atol=1)
    chex.assert_trees_all_close(out[1:-1, :, 1].astype(float), np.tile(8 * middles[2:14, None], (1, 14)), atol=1)
    assert not out[..., 2].any()


def test_grey_images_have_one_channel():
    image = Image.fromarray(noise(9, 12)[..., 0])
    draws = np.random.default_rng(0).random((10, 4), np.float32)
    assert centre_crop(image, 4).shape == random_crop(image, 4, draws).shape == (4, 4, 1)


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [80, 80, 80]]], np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF"])
def test_images_without_loss_are_decoded_exactly(file_format):
    chex.assert_trees_all_equal(np.asarray(decode(file(Image.fromarray(COLOURS), file_format), 3)), COLOURS)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "RGBA"])
def test_other_kinds_of_colour_become_rgb(mode):
    image = Image.fromarray(COLOURS).convert(mode, palette=Image.Palette.ADAPTIVE)
    if mode == "RGBA":
        image.putalpha(7)
    options = {"subsampling": 0, "quality": 100} if mode in ("RGB", "CMYK") else {}
    data = file(image, "JPEG" if options else "PNG", **options)
    assert Image.open(io.BytesIO(data)).mode == mode
    decoded = decode(data, 3)
    assert decoded.mode == "RGB"
    chex.assert_trees_all_close(np.asarray(decoded).astype(int), COLOURS.astype(int), atol=4)


def test_grey_becomes_rgb_and_rgb_becomes_grey():
    grey = noise(8, 8)[..., 0]
    chex.assert_trees_all_equal(
        np.asarray(decode(file(Image.fromarray(grey), "PNG"), 3)), np.repeat(grey[..., None], 3, axis=2)
    )
    colours = np.asarray(decode(file(Image.fromarray(COLOURS), "PNG"), 1)).astype(float)
    chex.assert_trees_all_close(colours, COLOURS @ np.array([0.299, 0.587, 0.114]), atol=1)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", *(file(Image.fromarray(noise(40, 40)), name)[:-200] for name in ("JPEG", "PNG", "BMP"))],
    ids=["empty", "text", "jpeg", "png", "bmp"],
)
def test_broken_files_are_refused(data):
    with pytest.raises(ValueError, match=r"^cannot be decoded$"):
        decode(data, 3)


def test_files_of_other_formats_and_of_more_than_bytes_are_refused():
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(file(Image.fromarray(COLOURS), "TIFF"), 3)
    deep = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000)
    with pytest.raises(ValueError, match=r"has pixels of more than 8 bits \(mode I;16\)"):
        decode(file(deep, "PNG"), 3)


@given(st.data())
def test_damaged_files_give_an_image_or_the_error(data):
    whole = file(Image.fromarray(noise(12, 12)), data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP"])))
    damaged = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            assert decode(bytes(damaged), 3).mode == "RGB"
        except ValueError as error:
            assert str(error) == "cannot be decoded"
