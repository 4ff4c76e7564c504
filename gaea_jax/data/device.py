"""Batches from a data set that lies whole on the device.

A source is a function of the step alone: batch ``i`` is the same whether steps run one by one or inside
``lax.scan``, and a resumed run needs nothing but its step. Sources are pytrees whose leaves are the arrays.
Pass them to a compiled function as an argument; closed over, the images would become constants of the
program, copied and slow to compile.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.data.augment import Recipe, normalise
from gaea_jax.data.order import Order
from gaea_jax.data.splits import Split, StoredSplit, take
from gaea_jax.errors import UsageError

Batch = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Augmented training batches; made by `epoch_batches` or `random_batches`, called with the step.

    Attributes:
      images: uint8 ``[size, height, width, channels]``.
      labels: int32 ``[size]``.
      order: which images make up a batch.
      recipe: what is done to them.
    """

    images: jax.Array
    labels: jax.Array
    order: Order
    recipe: Recipe

    # Compiled here too, so that a call from Python runs the same program as a call from inside another jit.
    @jax.jit
    def __call__(self, step: int | jax.Array) -> Batch:
        """The batch of a step.

        Args:
          step: integer, 0 or more.

        Returns:
          Images float32 ``[batch_size, height, width, channels]`` and labels int32 ``[batch_size]``.
        """
        indices = self.order.indices(step)
        return self.recipe(step, self.images[indices]), self.labels[indices]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SearchSource:
    """The two streams of a search; made by `search_source`, called with the step.

    Attributes:
      weights: batches for the shared weights.
      arch: batches for the architecture; None if one batch serves both.
    """

    weights: Batches
    arch: Batches | None

    def __call__(self, step: int | jax.Array) -> dict[str, Batch]:
        """The batches of a step.

        Args:
          step: integer, 0 or more.

        Returns:
          ``{"weights": (images, labels)}``, with ``"arch"`` beside it unless that stream is None.
        """
        batches = {"weights": self.weights(step)}
        return batches if self.arch is None else {**batches, "arch": self.arch(step)}


def eval_batches(
    split: Split | StoredSplit, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Goes once through a split in order, without augmentation.

    All batches have one size; the last is filled up with copies of the last image, which the mask leaves out.

    Args:
      split: images and labels, kept where they are; one batch at a time goes to the device.
      batch_size: 1 or more.
      mean: a number for each channel, see `gaea_jax.data.normalise`.
      std: a number for each channel.

    Returns:
      An iterator over images float32 ``[batch_size, height, width, channels]``, labels int32 ``[batch_size]``
      and mask bool ``[batch_size]``, true where the image counts.

    Raises:
      UsageError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UsageError("batch_size", f"must be 1 or more, not {batch_size}")
    size = split.size

    def batch(start: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        places = np.arange(start, start + batch_size)
        images, labels = take(split, np.minimum(places, size - 1))
        return normalise(jnp.asarray(images), mean, std), jnp.asarray(labels), jnp.asarray(places < size)

    return (batch(start) for start in range(0, size, batch_size))
