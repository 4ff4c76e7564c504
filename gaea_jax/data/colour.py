"""Random changes of colour in JAX: brightness, contrast, saturation and hue, in random order."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.errors import UsageError

WHITE = 255.0
# Weights of red, green and blue in the light of a pixel (ITU-R BT.601). They add up to 1: grey stays as light as it is.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """How far the colours of a training image may change.

    Attributes:
      brightness: its factor is drawn from ``1 - brightness .. 1 + brightness``, but not below 0.
      contrast: likewise.
      saturation: likewise.
      hue: the turn of the colours is drawn from ``-hue .. hue``, where 1 is the whole circle; at most 0.5.

    Raises:
      UsageError: on ``jitter``, if a strength is negative or not finite, or ``hue`` is above 0.5.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __post_init__(self) -> None:
        for name, strength in dataclasses.asdict(self).items():
            most = 0.5 if name == "hue" else math.inf
            if not (math.isfinite(strength) and 0 <= strength <= most):
                accepted = "in 0..0.5" if name == "hue" else "0 or more, and finite"
                raise UsageError("jitter", f"{name} must be {accepted}, not {strength}")


# Of DARTS and PC-DARTS, when a network is trained on ImageNet; GAEA does as PC-DARTS.
IMAGENET_JITTER = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)


class Changes(NamedTuple):
    """What is changed in the colours of each image of a batch.

    Attributes:
      factors: float32 ``[batch, 3]``, of brightness, contrast and saturation.
      order: int32 ``[batch, 3]``, the places of these three in ``factors``, in the order in which they are applied.
      hue_after: int32 ``[batch]``, how many of the three are applied before the hue is turned, 0 to 3.
      turn: float32 ``[batch]``, of the hue; 1 is the whole circle.
    """

    factors: jax.Array
    order: jax.Array
    hue_after: jax.Array
    turn: jax.Array


def draw_changes(key: jax.Array, batch: int, jitter: Jitter) -> Changes:
    """Draws the changes of each image on its own; all 24 orders of the four are equally likely.

    Args:
      key: a JAX random key.
      batch: number of images.
      jitter: how far the changes go.

    Returns:
      The `Changes`.
    """
    factor_key, order_key, hue_key, turn_key = jax.random.split(key, 4)
    strengths = np.array([jitter.brightness, jitter.contrast, jitter.saturation], np.float32)
    lowest, highest = np.maximum(0, 1 - strengths), 1 + strengths
    order = jnp.broadcast_to(jnp.arange(3), (batch, 3))
    return Changes(
        factors=jax.random.uniform(factor_key, (batch, 3), minval=lowest, maxval=highest),
        order=jax.random.permutation(order_key, order, axis=1, independent=True),
        hue_after=jax.random.randint(hue_key, (batch,), 0, 4),
        turn=jax.random.uniform(turn_key, (batch,), minval=-jitter.hue, maxval=jitter.hue),
    )


def change_colours(images: jax.Array, changes: Changes) -> jax.Array:
    """Applies changes of colour, as torchvision's ``ColorJitter`` does to images of real numbers.

    With ``x`` a pixel, ``y`` its luma and ``f`` the factor, brightness is ``f x``, contrast ``f x + (1 - f) mean(y)``
    with the mean over the image, and saturation ``f x + (1 - f) y``, each cut off at black and white. The hue is that
    of HSV. Nothing is rounded to bytes in between.

    Args:
      images: float ``[batch, height, width, 3]``, red, green and blue in 0..255.
      changes: what to do to each.

    Returns:
      Shape, dtype and range of ``images``.
    """

    def blended(images: jax.Array, place: int, applies: jax.Array) -> jax.Array:
        which = changes.order[:, place]
        factor = jnp.take_along_axis(changes.factors, which[:, None], axis=1)[:, 0]
        which, factor = (_per_image(value) for value in (which, jnp.where(applies, factor, 1)))
        luma = jnp.sum(images * LUMA, axis=-1, keepdims=True)
        mean = jnp.mean(luma, axis=(1, 2), keepdims=True)
        other = jnp.select([which == _BRIGHTNESS, which == _CONTRAST], [jnp.zeros_like(luma), mean], luma)
        return jnp.clip(factor * images + (1 - factor) * other, 0, WHITE)

    # A blend with factor 1 changes nothing, so the three stand both before and after the hue, which is the dearest: it
    # is turned once, and no image needs a program of its own.
    for place in range(3):
        images = blended(images, place, place < changes.hue_after)
    images = turn_hue(images, changes.turn)
    for place in range(3):
        images = blended(images, place, place >= changes.hue_after)
    return images


def turn_hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the hue of each image by way of HSV, whose saturation and value stay; grey stays as it is.

    Args:
      images: float ``[batch, height, width, 3]``, red, green and blue, 0 or more.
      turn: ``[batch]``; 1 is the whole circle, 1/3 makes red green.

    Returns:
      Shape and dtype of ``images``.

    Example:
      >>> red = jnp.array([[[[200.0, 0.0, 0.0]]]])
      >>> turn_hue(red, jnp.array([0.5])).ravel().tolist()
      [0.0, 200.0, 200.0]
    """
    red, green, blue = (images[..., channel] for channel in range(3))
    value = jnp.max(images, axis=-1)
    chroma = value - jnp.min(images, axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.select(
        [value == red, value == green],
        [(green - blue) / divisor, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    sixth = sixth + 6 * turn[:, None, None]

    def channel(offset: int) -> jax.Array:
        k = sixth + offset
        k = k - 6 * jnp.floor(k / 6)  # The remainder; as ``% 6`` the turn takes three times as long on CPU.
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def colour_jitter(key: jax.Array, images: jax.Array, jitter: Jitter) -> jax.Array:
    """Changes the colours of each image at random.

    Args:
      key: a JAX random key.
      images: uint8 ``[batch, height, width, 3]``, red, green and blue.
      jitter: how far the changes go.

    Returns:
      float32 in 0..255, shape of ``images``.

    Raises:
      UsageError: on ``images``, if they are not bytes; on ``jitter``, if they have other than three channels.
    """
    if images.dtype != jnp.uint8:
        raise UsageError("images", f"must be uint8 in 0..255, not {images.dtype}")
    if images.shape[-1] != 3:
        raise UsageError("jitter", f"needs images of 3 channels, not {images.shape[-1]}")
    return change_colours(images.astype(jnp.float32), draw_changes(key, len(images), jitter))


def _per_image(value: jax.Array) -> jax.Array:
    return value[:, None, None, None]
