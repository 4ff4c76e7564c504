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

from gaea_jax.data.augment import Augmentation, normalise, prepare
from gaea_jax.data.datasets import Dataset, Split
from gaea_jax.data.shuffle import shuffled
from gaea_jax.errors import UsageError

Batch = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Augmented training batches; made by `epoch_batches` or `random_batches`, called with the step.

    Attributes:
      images: uint8 ``[size, height, width, channels]``.
      labels: int32 ``[size]``.
      key: random key that the order of the images and their augmentation follow from.
      batch_size: images in every batch.
      steps_per_epoch: number of steps that share one order of the images.
      augmentation: what is done to each image.
      mean: a number for each channel, see `gaea_jax.data.normalise`.
      std: a number for each channel.
    """

    images: jax.Array
    labels: jax.Array
    key: jax.Array
    batch_size: int = dataclasses.field(metadata={"static": True})
    steps_per_epoch: int = dataclasses.field(metadata={"static": True})
    augmentation: Augmentation = dataclasses.field(metadata={"static": True})
    mean: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    std: tuple[float, ...] = dataclasses.field(metadata={"static": True})

    def indices(self, step: int | jax.Array) -> jax.Array:
        """Which images make up the batch of a step.

        Args:
          step: integer, 0 or more.

        Returns:
          int32 ``[batch_size]``, no image twice.
        """
        size = len(self.labels)
        epoch, step_in_epoch = step // self.steps_per_epoch, step % self.steps_per_epoch
        positions = (step_in_epoch * self.batch_size + jnp.arange(self.batch_size)) % size
        return shuffled(jax.random.fold_in(jax.random.fold_in(self.key, 0), epoch), positions, size)

    # Compiled here too, so that a call from Python runs the same program as a call from inside another jit.
    @jax.jit
    def __call__(self, step: int | jax.Array) -> Batch:
        """The batch of a step.

        Args:
          step: integer, 0 or more.

        Returns:
          Images float32 ``[batch_size, height, width, channels]`` and labels int32 ``[batch_size]``.
        """
        indices = self.indices(step)
        key = jax.random.fold_in(jax.random.fold_in(self.key, 1), step)
        return prepare(key, self.images[indices], self.augmentation, self.mean, self.std), self.labels[indices]


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


def epoch_batches(
    split: Split,
    key: jax.Array,
    batch_size: int,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Batches:
    """Batches that go through the images epoch by epoch, each epoch in a new order.

    An epoch has ``ceil(size / batch_size)`` steps. Its last batch is filled up with the first images of the
    same order, so that all batches have one size and every image comes at least once.

    Args:
      split: the images and labels, on the host or the device; they are moved to the device once.
      key: a JAX random key.
      batch_size: from 1 to the number of images.
      augmentation: what is done to each image.
      mean: a number for each channel, see `gaea_jax.data.normalise`.
      std: a number for each channel.

    Returns:
      A source: ``source(step)`` gives images float32 and labels int32.

    Raises:
      UsageError: ``batch_size`` is out of range.
    """
    steps = -(-len(split.labels) // max(batch_size, 1))
    return _batches(split, key, batch_size, augmentation, mean, std, steps)


def random_batches(
    split: Split,
    key: jax.Array,
    batch_size: int,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Batches:
    """Batches drawn anew at every step: no image twice within a batch, and steps independent of each other.

    This is what the released GAEA code feeds the architecture: the first batch of a freshly shuffled loader.

    Args:
      split: as for `epoch_batches`.
      key: as for `epoch_batches`.
      batch_size: as for `epoch_batches`.
      augmentation: as for `epoch_batches`.
      mean: as for `epoch_batches`.
      std: as for `epoch_batches`.

    Returns:
      A source: ``source(step)`` gives images float32 and labels int32. Its epochs are one step long.

    Raises:
      UsageError: ``batch_size`` is out of range.
    """
    return _batches(split, key, batch_size, augmentation, mean, std, steps_per_epoch=1)


def search_source(dataset: Dataset, key: jax.Array, batch_size: int, order: str) -> SearchSource:
    """The batches of a single-level search, both streams from the whole train split.

    Li et al., `Geometry-Aware Gradient Algorithms for Neural Architecture Search
    <https://arxiv.org/abs/2004.07802>`_, section 2.2; the streams are those of the released code on
    NAS-Bench-201.

    Args:
      dataset: its train split, augmentation and normalisation are used.
      key: a JAX random key.
      batch_size: from 1 to the number of training images.
      order: "alternating" gives the architecture random batches of its own; "joint" gives one batch for both.

    Returns:
      A source: ``source(step)`` gives ``{"weights": (x, y)}`` and, for "alternating", ``"arch": (x, y)``.

    Raises:
      UsageError: ``order`` is unknown or ``batch_size`` is out of range.
    """
    if order not in ("alternating", "joint"):
        raise UsageError("order", f'must be "alternating" or "joint", not {order!r}')
    # Moved once here, so that both streams hold the same arrays.
    split = Split(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels))
    recipe = (batch_size, dataset.augmentation, dataset.mean, dataset.std)
    return SearchSource(
        weights=epoch_batches(split, jax.random.fold_in(key, 0), *recipe),
        arch=random_batches(split, jax.random.fold_in(key, 1), *recipe) if order == "alternating" else None,
    )


def eval_batches(
    split: Split, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...]
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
    size = len(split.labels)

    def batch(start: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        places = np.arange(start, start + batch_size)
        indices = np.minimum(places, size - 1)
        images, labels = jnp.asarray(split.images[indices]), jnp.asarray(split.labels[indices])
        return normalise(images, mean, std), labels, jnp.asarray(places < size)

    return (batch(start) for start in range(0, size, batch_size))


def _batches(
    split: Split,
    key: jax.Array,
    batch_size: int,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
) -> Batches:
    size = len(split.labels)
    if not 1 <= batch_size <= size:
        raise UsageError("batch_size", f"must be between 1 and the {size} images there are, not {batch_size}")
    return Batches(
        images=jnp.asarray(split.images),
        labels=jnp.asarray(split.labels),
        key=key,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        augmentation=augmentation,
        mean=mean,
        std=std,
    )
