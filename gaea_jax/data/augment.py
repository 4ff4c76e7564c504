"""Augmentation of image batches in JAX: flip, padded crop, change of colours, normalisation, cutout.

Everything works on whole batches under ``jit`` and draws from an explicit key, so that a batch can be made
again at any time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.data.colour import Jitter, colour_jitter
from gaea_jax.data.resize import TRIES
from gaea_jax.errors import UsageError

# Streams of random numbers of a step; the split for flip, crop and cutout has taken those before.
_CROP, _JITTER = 2, 3


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images on the device; ``Augmentation(flip=False, pad=0)`` leaves them as they come.

    Attributes:
      flip: mirror each image left to right with probability 1/2.
      pad: crop each image at a random place after padding it with this many black pixels on every side.
      cutout: side in pixels of the square that is blanked at a random place; 0 blanks nothing.
      jitter: how far the colours change at random; None leaves them. Needs three channels.

    Raises:
      UsageError: ``pad`` or ``cutout`` is negative.
    """

    flip: bool
    pad: int
    cutout: int = 0
    jitter: Jitter | None = None

    def __post_init__(self) -> None:
        for name in ("pad", "cutout"):
            if getattr(self, name) < 0:
                raise UsageError(name, f"must be 0 or more pixels, not {getattr(self, name)}")


def augment(key: jax.Array, images: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Flips and crops each image on its own, as the CIFAR recipes do.

    Each of the ``2 * pad + 1`` offsets is equally likely on both axes. The padding is black before
    normalisation, as in torchvision's ``RandomCrop``.

    Args:
      key: a JAX random key.
      images: any dtype, ``[batch, height, width, channels]``.
      augmentation: its ``flip`` and ``pad`` are applied; the rest is not (see `prepare`).

    Returns:
      An array of the shape and dtype of ``images``.

    Example:
      >>> image = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 4, 1)
      >>> augment(jax.random.key(3), image, Augmentation(flip=True, pad=0)).ravel().tolist()
      [3, 2, 1, 0]
    """
    flip_key, crop_key = jax.random.split(key)
    batch = len(images)
    if augmentation.flip:
        flip = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)
    if augmentation.pad:
        pad, shape = augmentation.pad, images.shape[1:]
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        images = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)
    return images


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Maps bytes to ``(images / 255 - mean) / std``.

    Args:
      images: uint8 ``[batch, height, width, channels]``.
      mean: a number for each channel, in units where white is 1.
      std: a number above 0 for each channel, in the same units.

    Returns:
      float32, shape of ``images``.

    Raises:
      UsageError: ``images`` are not bytes, or ``mean`` or ``std`` do not have one number a channel.

    Example:
      >>> normalise(jnp.array([[[[0], [255]]]], jnp.uint8), mean=(0.5,), std=(0.25,)).ravel().tolist()
      [-2.0, 2.0]
    """
    if images.dtype != jnp.uint8:
        raise UsageError("images", f"must be uint8 in 0..255, not {images.dtype}")
    return _normalised(images.astype(jnp.float32), mean, std)


def _normalised(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    channels = images.shape[-1]
    for name, constant in (("mean", mean), ("std", std)):
        if len(constant) != channels:
            raise UsageError(name, f"must have one number for each of {channels} channels, not {len(constant)}")
    # One difference, then one product, with constants: a compiler can neither fuse nor reorder these, so a
    # batch has the same bits in every program. The formula as written above, with arrays, has not.
    offset = np.float32(255 * np.array(mean))
    scale = np.float32(1 / (255 * np.array(std)))
    return (images - offset) * scale


def cutout(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Blanks a square at a random place of each image.

    The centre is a uniformly random pixel, so squares near the border are clipped. See DeVries and Taylor,
    `Improved Regularization of Convolutional Neural Networks with Cutout
    <https://arxiv.org/abs/1708.04552>`_, section 3.

    Args:
      key: a JAX random key.
      images: float ``[batch, height, width, channels]``, normalised: zero is then the mean of the data set.
      side: side of the square in pixels.

    Returns:
      The images with zeros in the square, shape and dtype of ``images``.

    Example:
      >>> cutout(jax.random.key(0), jnp.ones((1, 1, 8, 1)), 3).ravel().tolist()
      [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    batch, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)

    def blanked(key: jax.Array, length: int) -> jax.Array:
        first = jax.random.randint(key, (batch, 1), 0, length) - side // 2
        pixel = jnp.arange(length)
        return (pixel >= first) & (pixel < first + side)

    square = blanked(row_key, height)[:, :, None, None] & blanked(column_key, width)[:, None, :, None]
    return jnp.where(square, 0, images)


def prepare(
    key: jax.Array,
    images: jax.Array,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Turns stored images into a training batch: flip and crop, then colours, then normalise, then cutout.

    Args:
      key: a JAX random key.
      images: uint8 ``[batch, height, width, channels]``.
      augmentation: what to do.
      mean: a number for each channel, see `normalise`.
      std: a number for each channel, see `normalise`.

    Returns:
      float32, shape of ``images``.

    Raises:
      UsageError: as `normalise` and `gaea_jax.data.colour.colour_jitter`.
    """
    augment_key, cutout_key = jax.random.split(key)
    images = augment(augment_key, images, augmentation)
    if augmentation.jitter is None:
        batch = normalise(images, mean, std)
    else:
        jittered = colour_jitter(jax.random.fold_in(key, _JITTER), images, augmentation.jitter)
        batch = _normalised(jittered, mean, std)
    return cutout(cutout_key, batch, augmentation.cutout) if augmentation.cutout else batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """What is done to the images of a stream of training batches; a pytree, called with the step and the images.

    Attributes:
      key: random key of the augmentation.
      augmentation: what is done to each image.
      mean: a number for each channel, see `normalise`.
      std: a number for each channel.
    """

    key: jax.Array
    augmentation: Augmentation = dataclasses.field(metadata={"static": True})
    mean: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    std: tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, step: int | jax.Array, images: jax.Array) -> jax.Array:
        """Augments and normalises the images of a step.

        Args:
          step: integer, 0 or more.
          images: uint8 ``[batch, height, width, channels]``.

        Returns:
          float32, shape of ``images``.

        Raises:
          UsageError: as `prepare`.
        """
        return prepare(jax.random.fold_in(self.key, step), images, self.augmentation, self.mean, self.std)

    def crop_draws(self, step: int | jax.Array, batch_size: int) -> jax.Array:
        """The random numbers of a step's crops, where images of any size are cropped as they are read.

        Args:
          step: integer, 0 or more.
          batch_size: images in the batch.

        Returns:
          float32 ``[batch_size, 10, 4]`` in 0..1 without 1, for `gaea_jax.data.resize.random_box`.
        """
        key = jax.random.fold_in(jax.random.fold_in(self.key, step), _CROP)
        return jax.random.uniform(key, (batch_size, TRIES, 4))
