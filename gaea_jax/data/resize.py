"""Images of any size made into squares of one, on the host: decoded, cut and resized with Pillow.

The rules are those that ImageNet's usual recipe has in torchvision, for PIL images: ``RandomResizedCrop`` for training,
``Resize`` and ``CenterCrop`` for testing. Images are always decoded whole: what JPEG offers at a fraction of the size
has other pixels, and few crops of ImageNet are twice as large as what they are resized to.
"""

import io

import numpy as np
from PIL import Image

TRIES = 10
AREA = (0.08, 1.0)  # Share of the image that a random crop covers.
RATIO = 4 / 3  # The longer side of a random crop over the shorter one, at most.

_FORMATS = ("JPEG", "PNG", "GIF", "BMP")  # What TFDS writes, or TensorFlow reads.
_MODES = {1: "L", 3: "RGB"}
CHANNELS = tuple(_MODES)


def decode(data: bytes, channels: int) -> Image.Image:
    """Decodes a stored image.

    What is stored in other colours than it should be (grey, palette, CMYK, with transparency) is converted by Pillow:
    transparency is dropped, CMYK is taken for the inverse of RGB without a colour profile. TFDS has done so itself
    where it knows of such images, as in ``imagenet2012``.

    Args:
      data: a JPEG, PNG, GIF or BMP file.
      channels: 1 for grey, 3 for RGB.

    Returns:
      The whole image, of Pillow's mode "L" or "RGB".

    Raises:
      ValueError: the file is broken, or its pixels are not bytes; the message goes on from "image so-and-so".
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    # All that Pillow's readers raise on what is no image, or is only the start of one, or claims an absurd size.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("cannot be decoded") from error
    if image.mode[0] in "IF":
        raise ValueError(f"has pixels of more than 8 bits (mode {image.mode})")
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def random_box(height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """Where a random crop lies: its area, its shape and its place are all drawn.

    A try draws the crop's share of the image's area from 0.08 to 1, uniformly, and its width over its height from 3/4
    to 4/3, uniformly in the logarithm; both sides are rounded. The first of ten tries that fits into the image is
    taken, each place in it being equally likely. If none does, the crop is the middle of the image: all of it, or as
    much as those shapes allow. See Szegedy et al., `Going Deeper with Convolutions
    <https://arxiv.org/abs/1409.4842>`_, section 6; the numbers are those of torchvision's ``RandomResizedCrop``.

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      draws: ``[10, 4]``, uniform in 0..1 without 1: area, shape, row and column of each try.

    Returns:
      The first row, the first column, the height and the width of the crop, in pixels.

    Example:
      >>> random_box(200, 300, np.full((10, 4), 0.5))
      (10, 60, 180, 180)
    """
    area, shape, row, column = draws.astype(np.float64).T
    pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
    ratios = RATIO ** (2 * shape - 1)
    heights, widths = np.rint(np.sqrt(pixels / ratios)).astype(int), np.rint(np.sqrt(pixels * ratios)).astype(int)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    if fits.any():
        first = fits.argmax()
        inner_height, inner_width = int(heights[first]), int(widths[first])
        top = int(row[first] * (height - inner_height + 1))
        left = int(column[first] * (width - inner_width + 1))
        return top, left, inner_height, inner_width
    inner_height, inner_width = min(height, round(width * RATIO)), min(width, round(height * RATIO))
    return (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width


def random_crop(image: Image.Image, size: int, draws: np.ndarray) -> np.ndarray:
    """A random crop of an image, resized for training.

    The crop is cut out first, so that no pixel beside it counts, and then resized bilinearly; where that makes it
    smaller, a new pixel is the weighted mean of all old ones it covers.

    Args:
      image: of one or three channels.
      size: side in pixels of the result.
      draws: ``[10, 4]``, see `random_box`.

    Returns:
      uint8 ``[size, size, channels]``.
    """
    top, left, height, width = random_box(image.height, image.width, draws)
    cut = image.crop((left, top, left + width, top + height))
    return _pixels(cut.resize((size, size), Image.Resampling.BILINEAR))


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The middle of an image, resized for testing.

    The shorter side is resized bilinearly to ``size * 256 / 224`` pixels, rounded, and the longer one with it, rounded
    down; the square in the middle is cut out of that. At 224 pixels that is the usual test of ImageNet.

    Args:
      image: of one or three channels.
      size: side in pixels of the result.

    Returns:
      uint8 ``[size, size, channels]``.
    """
    short = round(size * 256 / 224)
    shorter = min(image.size)
    width, height = (short * side // shorter for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return _pixels(resized.crop((left, top, left + size, top + size)))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)
