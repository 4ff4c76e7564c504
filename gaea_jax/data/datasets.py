"""Image classification sets, in memory or left on disk: digits, or any prepared set of TensorFlow Datasets.

TensorFlow itself is not needed. Nothing is downloaded and nothing is written.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gaea_jax.data.augment import Augmentation
from gaea_jax.data.resize import CHANNELS
from gaea_jax.data.splits import BLOCK, Split, StoredSplit, mixed_sizes, take
from gaea_jax.errors import UsageError

# (mean, std) of the NAS-Bench-201 recipe, in the 0..255 units they are published in
# (Dong and Yang, https://arxiv.org/abs/2001.00326; rounded there, so a little off the exact statistics).
_PUBLISHED = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "imagenet16_120": ((122.68, 116.66, 104.01), (63.22, 61.26, 65.09)),
}
# (mean, std) of the usual ImageNet recipe, where white is 1.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Sets whose papers report the accuracy on the validation images, those for testing being absent or without labels.
_TESTED_ON_VALIDATION = ("imagenet2012", "imagenet2012_subset", "imagenet_resized", "imagenette", "imagewang")
# So many images of a split are looked at to see whether all have one size.
_GLANCE = 8
# Sets of characters, where a mirror image is another character or none.
_NO_FLIP = ("digits", "emnist", "kmnist", "mnist", "mnist_corrupted", "svhn_cropped")


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
    train: Split | StoredSplit
    test: Split | StoredSplit
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None, *, test: bool = True) -> Dataset:
    """Loads and decodes a whole data set.

    "digits" are the 1,797 handwritten digits of scikit-learn, enlarged from 8x8 to 16x16 grey pixels so that
    two halvings leave a 4x4 map. Every fifth image, counted class after class, is for testing (1,437 train,
    360 test); no random numbers are involved.

    Any other name is looked up in TensorFlow Datasets. The set must have been prepared as ``array_record``
    and have splits ``train`` and ``test``, a feature ``image`` of bytes, all of one size, and a feature
    ``label``. The 60,000 images of CIFAR-10 take about ten seconds to decode. The split ``validation`` is for testing
    in the sets that have no labelled ``test``: ImageNet (``imagenet2012``, ``imagenet2012_subset``,
    ``imagenet_resized``), Imagenette and Imagewang.

    CIFAR-10, CIFAR-100 and a set named "imagenet16_120" are normalised by the constants of NAS-Bench-201
    (Dong and Yang, `NAS-Bench-201 <https://arxiv.org/abs/2001.00326>`_), others by the statistics of their
    train split. The default augmentation crops with a padding of an eighth of the image (4 pixels at 32x32, 2
    at 16x16) and flips, except where the images are characters. Cutout is off.

    Args:
      name: "digits", or the name of a data set as TFDS spells it, for example "cifar10" or "emnist/letters".
      data_dir: folder of prepared TFDS sets; None is TFDS's own default. Not used by "digits".
      test: whether the test images of a TFDS set are decoded too; if not, they are a `StoredSplit`.

    Returns:
      The data set, as NumPy arrays.

    Raises:
      UsageError: on ``dataset`` if the name is unknown or the set is not of the kind above, on ``data_dir``
        if there is no prepared copy.

    Example:
      >>> digits = load_dataset("digits")
      >>> digits.train.images.shape, digits.test.labels.shape, digits.augmentation
      ((1437, 16, 16, 1), (360,), Augmentation(flip=False, pad=2, cutout=0, jitter=None))
    """
    if name == "digits":
        return _with_recipe(name, *_digits())
    train, tested, num_classes = _from_tfds(name, data_dir)
    return _with_recipe(name, train.load(), tested.load() if test else tested, num_classes)


def open_dataset(name: str, data_dir: str | os.PathLike[str] | None = None, image_size: int | None = None) -> Dataset:
    """Opens a data set that does not fit on the device: its images stay on disk, and are decoded as they are read.

    What is accepted, and the constants, are those of `load_dataset`; where there are no published ones, all training
    images are read once, block by block, for their statistics. An image of another size, or without a label, is only
    found when it is read, but for the few of each split that are looked at here.

    With an ``image_size`` the images may have any sizes, and all of them, also those of a set of one size, are made
    into squares of that side as they are read: a random crop for each training batch of a stream
    (`gaea_jax.data.resize.random_crop`), and the middle of the image wherever else images are read
    (`gaea_jax.data.resize.centre_crop`). The default augmentation then has no padding. A set named "imagenet..."
    without constants of its own is normalised by those usual for ImageNet. The statistics of any other are those of the
    middles of all training images, at the cost of decoding each once: about an hour for a million on one core.

    Args:
      name: the name of a data set as TFDS spells it.
      data_dir: folder of prepared TFDS sets; None is TFDS's own default.
      image_size: side in pixels, such as 224; None leaves the images as they are stored, which must then have one size.

    Returns:
      The data set, both splits stored.

    Raises:
      UsageError: as `load_dataset`; on ``stream`` for "digits"; on ``image_size``, if it is below 1, or the images do
        not have 1 or 3 channels.
    """
    if name == "digits":
        raise UsageError("stream", "applies to TFDS sets that are stored on disk; the digits are always in memory")
    if image_size is not None and image_size < 1:
        raise UsageError("image_size", f"must be 1 or more pixels, not {image_size}")
    return _with_recipe(name, *_from_tfds(name, data_dir, image_size))


def _with_recipe(name: str, train: Split | StoredSplit, test: Split | StoredSplit, num_classes: int) -> Dataset:
    base = _base(name)
    resized = isinstance(train, StoredSplit) and train.resized
    if base in _PUBLISHED:
        mean, std = (np.array(constant) / 255 for constant in _PUBLISHED[base])
    elif resized and base.startswith("imagenet"):
        mean, std = map(np.array, _IMAGENET)
    else:
        mean, std = _statistics(train)
    if not np.all(std > 0):
        raise UsageError("dataset", f"{name!r} has a channel that is the same in all pixels; it cannot be normalised")
    height, width, _ = train.image_shape
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=num_classes,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        augmentation=Augmentation(flip=base not in _NO_FLIP, pad=0 if resized else min(height, width) // 8),
    )


def _base(name: str) -> str:
    """The name of a data set without its configuration and version."""
    return re.split("[/:]", name)[0]


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


def _from_tfds(
    name: str, data_dir: str | os.PathLike[str] | None, image_size: int | None = None
) -> tuple[StoredSplit, StoredSplit, int]:
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
    channels = image.shape[-1]
    if image_size is not None and channels not in CHANNELS:
        raise UsageError("image_size", f"needs images of 1 or 3 channels; those of {name!r} have {channels}")

    command = f"tfds build {name} --file_format=array_record"
    if data_dir is not None:
        command += f" --data_dir={os.fspath(data_dir)}"
    if not builder.is_prepared():
        raise UsageError("data_dir", f"there is no prepared copy at {builder.data_path}; make one with `{command}`")
    splits = ["train", "validation" if _base(name) in _TESTED_ON_VALIDATION else "test"]
    for split in splits:
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            needed = " and ".join(map(repr, splits))
            raise UsageError("dataset", f"{name!r} has no images in a split {split!r}; it needs {needed}")
    # Files that are cropped are decoded by us: TFDS does it with what is installed, and does not tell which is broken.
    options = {} if image_size is None else {"decoders": {"image": tfds.decode.SkipDecoding()}}
    try:
        sources = builder.as_data_source(splits, **options)
    except NotImplementedError as error:
        raise UsageError(
            "data_dir",
            f"the copy at {builder.data_path} is not in array_record format; make one with `{command}`",
        ) from error
    shape = _one_shape(name, sources) if image_size is None else (image_size, image_size, channels)
    train, test = (
        StoredSplit(name, split, source, shape, resized=image_size is not None)
        for split, source in zip(splits, sources, strict=True)
    )
    return train, test, label.num_classes


def _one_shape(name: str, sources: Sequence[Any]) -> tuple[int, ...]:
    """The shape of all images, as far as a few of them tell."""
    shapes = [
        source[int(place)]["image"].shape
        for source in sources
        for place in np.linspace(0, len(source) - 1, min(_GLANCE, len(source))).astype(int)
    ]
    for shape in shapes:
        if shape != shapes[0]:
            raise mixed_sizes(name, shapes[0], shape)
    return shapes[0]


def _statistics(split: Split | StoredSplit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in 0..1 units, from exact integer sums."""
    total, squares = np.zeros((2, split.image_shape[-1]), np.int64)
    for start in range(0, split.size, BLOCK):
        images = np.asarray(take(split, np.arange(start, min(start + BLOCK, split.size))).images)
        total += images.sum((0, 1, 2), dtype=np.int64)
        squares += np.square(images, dtype=np.uint16).sum((0, 1, 2), dtype=np.int64)
    height, width, _ = split.image_shape
    pixels = split.size * height * width
    mean = total / pixels
    return mean / 255, np.sqrt(squares / pixels - mean**2) / 255
