"""Labelled images: in memory, or stored on disk and read as they are needed."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from gaea_jax.data.resize import centre_crop, decode, random_crop
from gaea_jax.errors import UsageError

# Read by the thousand: TFDS is twice as fast that way as one by one, and the decoded copies stay small.
BLOCK = 1000


class Split(NamedTuple):
    """Labelled images in memory.

    Attributes:
      images: uint8 ``[size, height, width, channels]``.
      labels: int32 ``[size]``.
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        return self.images.shape[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSplit:
    """Labelled images that stay on disk; made by `open_dataset`. Several threads may read at once.

    Attributes:
      dataset: name of the data set.
      name: name of the split.
      records: random access to ``{"image": uint8 array, "label": int}``, one by one and by ``__getitems__``, as a TFDS
        data source has it; where ``resized``, the image is the file that is stored, as bytes.
      image_shape: height, width and channels of an image.
      resized: the images are of any size, and are cropped and resized to squares of that shape as they are read.
    """

    dataset: str
    name: str
    records: Any = dataclasses.field(repr=False)
    image_shape: tuple[int, ...]
    resized: bool = False

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.records)

    def read(self, indices: np.ndarray, draws: np.ndarray | None = None) -> Split:
        """Reads and decodes some of the images.

        Args:
          indices: integers ``[n]``, each in ``0 .. size - 1``; repeats are read again.
          draws: where ``resized``, random numbers ``[n, 10, 4]`` for a random crop of each image, see
            `gaea_jax.data.resize.random_box`; None crops the middle of each, as for testing. Not used elsewhere.

        Returns:
          A split of those ``n`` images, NumPy arrays.

        Raises:
          UsageError: on ``dataset``, if an image is broken, has another size than the first of the split (unless
            ``resized``), or no label.
        """
        images, labels = np.empty((len(indices), *self.image_shape), np.uint8), np.empty(len(indices), np.int32)
        for i, record in enumerate(self.records.__getitems__(indices.tolist())):
            labels[i] = record["label"]
            if self.resized:
                images[i] = self._resized(indices[i], record["image"], None if draws is None else draws[i])
            elif record["image"].shape != self.image_shape:
                raise mixed_sizes(self.dataset, self.image_shape, record["image"].shape)
            else:
                images[i] = record["image"]
        if np.any(labels < 0):
            raise UsageError("dataset", f"{self.dataset!r} has images without a label")
        return Split(images, labels)

    def load(self) -> Split:
        """Reads and decodes all images.

        Returns:
          The split as NumPy arrays.

        Raises:
          UsageError: as `read`.
        """
        images, labels = np.empty((self.size, *self.image_shape), np.uint8), np.empty(self.size, np.int32)
        for start in range(0, self.size, BLOCK):
            block = np.arange(start, min(start + BLOCK, self.size))
            images[block], labels[block] = self.read(block)
        return Split(images, labels)

    def _resized(self, index: int, data: bytes, draws: np.ndarray | None) -> np.ndarray:
        size, _, channels = self.image_shape
        try:
            image = decode(data, channels)
        except ValueError as error:
            raise UsageError(
                "dataset", f"image {index} of the split {self.name!r} of {self.dataset!r} {error}"
            ) from error
        return centre_crop(image, size) if draws is None else random_crop(image, size, draws)


def take(split: Split | StoredSplit, indices: np.ndarray | jax.Array) -> Split:
    """Some images of a split, read from disk if that is where they are.

    Args:
      split: in memory or stored.
      indices: integers ``[n]``, each in ``0 .. split.size - 1``, such as a part of a `TrainValid`.

    Returns:
      A split of those ``n`` images, in memory.

    Raises:
      UsageError: on ``indices``, if one is out of range; as `StoredSplit.read`.

    Example:
      >>> letters = Split(np.zeros((3, 8, 8, 1), np.uint8), np.array([7, 8, 9], np.int32))
      >>> take(letters, np.array([2, 0])).labels
      array([9, 7], dtype=int32)
    """
    numbers = np.asarray(indices)
    if np.any((numbers < 0) | (numbers >= split.size)):
        raise UsageError("indices", f"must be in 0..{split.size - 1}")
    if isinstance(split, StoredSplit):
        return split.read(numbers)
    return Split(split.images[numbers], split.labels[numbers])


def mixed_sizes(dataset: str, one: tuple[int, ...], other: tuple[int, ...]) -> UsageError:
    """The error of a data set whose images have more than one size."""
    return UsageError(
        "dataset",
        f"{dataset!r} has images of different sizes, such as {one} and {other}; all must have one size, "
        "which --image-size gives them where they stay on disk (--stream)",
    )
