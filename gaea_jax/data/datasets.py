"""Image classification sets as uint8 arrays on the host: digits, or any prepared set of TensorFlow Datasets.

TensorFlow itself is not needed. Nothing is downloaded and nothing is written.
"""

import dataclasses
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from gaea_jax.data.augment import Augmentation
from gaea_jax.errors import UsageError

# (mean, std) of the NAS-Bench-201 recipe, in the 0..255 units they are published in
# (Dong and Yang, https://arxiv.org/abs/2001.00326; rounded there, so a little off the exact statistics).
_PUBLISHED = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "imagenet16_120": ((122.68, 116.66, 104.01), (63.22, 61.26, 65.09)),
}
# Sets of characters, where a mirror image is another character or none.
_NO_FLIP = ("digits", "emnist", "kmnist", "mnist", "mnist_corrupted", "svhn_cropped")

# Read by the thousand: TFDS is twice as fast that way as one by one, and the decoded copies stay small.
_BLOCK = 1000


class Split(NamedTuple):
    """Labelled images.

    Attributes:
      images: uint8 ``[size, height, width, channels]``.
      labels: int32 ``[size]``.
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with the constants of its usual recipe.

    Attributes:
      name: the name it was loaded by.
      train: training images.
      test: test images.
      num_classes: labels are in ``0 .. num_classes - 1``.
      mean: mean of each channel in units where white is 1: the published one, or that of the train split.
      std: standard deviation of each channel, in the same units.
      augmentation: what is usually done to the training images.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads and decodes a whole data set.

    "digits" are the 1,797 handwritten digits of scikit-learn, enlarged from 8x8 to 16x16 grey pixels so that
    two halvings leave a 4x4 map. Every fifth image, counted class after class, is for testing (1,437 train,
    360 test); no random numbers are involved.

    Any other name is looked up in TensorFlow Datasets. The set must have been prepared as ``array_record``
    and have splits ``train`` and ``test``, a feature ``image`` of bytes, all of one size, and a feature
    ``label``. The 60,000 images of CIFAR-10 take about ten seconds to decode.

    CIFAR-10, CIFAR-100 and a set named "imagenet16_120" are normalised by the constants of NAS-Bench-201
    (Dong and Yang, `NAS-Bench-201 <https://arxiv.org/abs/2001.00326>`_), others by the statistics of their
    train split. The default augmentation crops with a padding of an eighth of the image (4 pixels at 32x32, 2
    at 16x16) and flips, except where the images are characters. Cutout is off.

    Args:
      name: "digits", or the name of a data set as TFDS spells it, for example "cifar10" or "emnist/letters".
      data_dir: folder of prepared TFDS sets; None is TFDS's own default. Not used by "digits".

    Returns:
      The data set, as NumPy arrays.

    Raises:
      UsageError: on ``dataset`` if the name is unknown or the set is not of the kind above, on ``data_dir``
        if there is no prepared copy.

    Example:
      >>> digits = load_dataset("digits")
      >>> digits.train.images.shape, digits.test.labels.shape, digits.augmentation
      ((1437, 16, 16, 1), (360,), Augmentation(flip=False, pad=2, cutout=0))
    """
    train, test, num_classes = _digits() if name == "digits" else _from_tfds(name, data_dir)
    base = re.split("[/:]", name)[0]
    if base in _PUBLISHED:
        mean, std = (np.array(constant) / 255 for constant in _PUBLISHED[base])
    else:
        mean, std = _statistics(np.asarray(train.images))
    if not np.all(std > 0):
        raise UsageError("dataset", f"{name!r} has a channel that is the same in all pixels; it cannot be normalised")
    pad = min(train.images.shape[1:3]) // 8
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=num_classes,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        augmentation=Augmentation(flip=base not in _NO_FLIP, pad=pad),
    )


def _digits() -> tuple[Split, Split, int]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = _enlarged(digits.images), digits.target.astype(np.int32)
    by_class = np.argsort(labels, kind="stable")
    test = np.zeros(len(labels), bool)
    test[by_class[::5]] = True
    return Split(images[~test], labels[~test]), Split(images[test], labels[test]), 10


def _enlarged(images: np.ndarray) -> np.ndarray:
    """Digits ``[size, 8, 8]`` of values 0..16 as uint8 ``[size, 16, 16, 1]``, by linear interpolation.

    Repeating pixels instead would put edges on a grid of two pixels that no handwriting has.
    """
    centres = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7)
    weights = np.stack([np.interp(centres, np.arange(8), one) for one in np.eye(8)], axis=1)
    enlarged = weights @ images @ weights.T
    return np.rint(enlarged * 255 / 16).astype(np.uint8)[..., None]


def _from_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Split, Split, int]:
    import tensorflow_datasets as tfds

    catalogue = "https://www.tensorflow.org/datasets/catalog/overview"
    unknown = UsageError(
        "dataset", f"{name!r} is neither 'digits' nor an image set of TensorFlow Datasets ({catalogue})"
    )
    # TFDS also takes names such as "huggingface:...", which go to the network.
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", name):
        raise unknown
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise unknown from error
    except (AssertionError, ValueError) as error:  # no such configuration or version
        first_line, *_ = str(error).split("\n")
        raise UsageError("dataset", f"{name!r} cannot be opened: {first_line}") from error
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and image.np_dtype == np.uint8
        and isinstance(label, tfds.features.ClassLabel)
    ):
        raise UsageError(
            "dataset",
            f"{name!r} is not for image classification: it needs features 'image' (uint8) and 'label'",
        )

    command = f"tfds build {name} --file_format=array_record"
    if data_dir is not None:
        command += f" --data_dir={os.fspath(data_dir)}"
    if not builder.is_prepared():
        raise UsageError("data_dir", f"there is no prepared copy at {builder.data_path}; make one with `{command}`")
    for split in ("train", "test"):
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise UsageError("dataset", f"{name!r} has no images in a split {split!r}; it needs 'train' and 'test'")
    try:
        sources = builder.as_data_source(["train", "test"])
    except NotImplementedError as error:
        raise UsageError(
            "data_dir",
            f"the copy at {builder.data_path} is not in array_record format; make one with `{command}`",
        ) from error
    train, test = (_decoded(name, source) for source in sources)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise _mixed_sizes(name, train.images.shape[1:], test.images.shape[1:])
    return train, test, label.num_classes


def _decoded(name: str, source: Any) -> Split:
    """Reads a whole split of a TFDS data source into two arrays."""
    size = len(source)
    shape = source[0]["image"].shape
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
    for start in range(0, size, _BLOCK):
        block = range(start, min(start + _BLOCK, size))
        for i, example in zip(block, source.__getitems__(list(block)), strict=True):
            if example["image"].shape != shape:
                raise _mixed_sizes(name, shape, example["image"].shape)
            images[i], labels[i] = example["image"], example["label"]
    if labels.min() < 0:
        raise UsageError("dataset", f"{name!r} has images without a label")
    return Split(images, labels)


def _mixed_sizes(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> UsageError:
    return UsageError(
        "dataset",
        f"{name!r} has images of different sizes, such as {one} and {other}; all must have one size",
    )


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in 0..1 units, from exact integer sums."""
    pixels = images.size // images.shape[-1]
    mean = images.sum((0, 1, 2), dtype=np.int64) / pixels
    square = np.square(images, dtype=np.uint16).sum((0, 1, 2), dtype=np.int64) / pixels
    return mean / 255, np.sqrt(square - mean**2) / 255
