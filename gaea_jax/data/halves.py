"""The two parts of the training images that a bilevel search needs: one for the weights, one for the architecture."""

import hashlib
import os
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from gaea_jax.errors import UsageError


class TrainValid(NamedTuple):
    """Image numbers of a training split, in two parts without a common image.

    Attributes:
      train: int32 ``[n]``, the images for the weights.
      valid: int32 ``[m]``, the images for the architecture.
    """

    train: np.ndarray
    valid: np.ndarray

    def digest(self) -> str:
        """Twelve hexadecimal digits that are others for other images, or the same in another order."""
        return hashlib.sha256(self.train.tobytes() + b"|" + self.valid.tobytes()).hexdigest()[:12]


def first_and_last_half(size: int) -> TrainValid:
    """The fixed split of the DARTS family: the first half of the training images, and the rest.

    Liu et al., `DARTS <https://arxiv.org/abs/1806.09055>`_, section 3.1, and its code (``train_portion`` 0.5).

    Args:
      size: number of training images.

    Returns:
      The halves; the second has one more image if the number is odd.

    Example:
      >>> first_and_last_half(5)
      TrainValid(train=array([0, 1], dtype=int32), valid=array([2, 3, 4], dtype=int32))
    """
    numbers = np.arange(size, dtype=np.int32)
    return TrainValid(numbers[: size // 2], numbers[size // 2 :])


def load_train_valid(path: str | os.PathLike[str], size: int) -> TrainValid:
    """Reads the two parts from a file, such as the fixed split of NAS-Bench-201 (Dong and Yang, section 2.2).

    A file that was made for another data set is recognised by its number of images: either every training image is in
    one of the two parts, or the file says of how many they were drawn, as those of PC-DARTS' search on ImageNet, 10 %
    and 2.5 % (`Xu et al. <https://arxiv.org/abs/1907.05737>`_, section 4.3).

    Args:
      path: an ``.npz`` file of plain arrays ``train`` and ``valid``, whole numbers, and, if they leave images out,
        ``images``, the number of training images of the data set; nothing is unpickled.
      size: number of training images of the data set.

    Returns:
      The image numbers, in the order of the file.

    Raises:
      UsageError: on ``split``, if the file cannot be read, lacks an array, or does not split ``size`` images in two.
    """
    parts, images = _read(path)
    for name, numbers in zip(TrainValid._fields, parts, strict=True):
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            kind = f"{numbers.dtype} of shape {numbers.shape}"
            raise UsageError("split", f"{path}: {name} must be a list of whole numbers, not {kind}")
        if not len(numbers):
            raise UsageError("split", f"{path}: {name} has no image; each part must have some")
    numbers = np.concatenate([part.astype(np.int64) for part in parts])
    found, counts = np.unique(numbers, return_counts=True)
    if len(found) < len(numbers):
        raise UsageError(
            "split", f"{path} has image {found[counts.argmax()]} more than once; every image must be in one part, once"
        )
    if images is not None and images != size:
        sentence = f"{path} is for {images} training images, but the data set has {size}; it is of another"
        raise UsageError("split", sentence)
    if images is None and len(found) != size:
        raise UsageError(
            "split", f"{path} splits {len(found)} images, but the data set has {size} training images; it is of another"
        )
    if found[0] < 0 or found[-1] >= size:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise UsageError("split", f"{path} has an image {wrong}; the {size} images are numbered 0..{size - 1}")
    return TrainValid(*(part.astype(np.int32) for part in parts))


def _read(path: str | os.PathLike[str]) -> tuple[TrainValid, int | None]:
    """Both parts, and of how many images they are where the file says that."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in (*TrainValid._fields, "images") if name in archive.files}
    except OSError as error:
        raise UsageError("split", f"cannot read {path} ({error.strerror or error})") from error
    # TypeError: a single array, which is no context manager.
    except (TypeError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError("split", f"{path} is damaged or not an .npz file of plain arrays") from error
    images = arrays.pop("images", None)
    if images is not None and (images.shape != () or images.dtype.kind not in "iu"):
        kind = f"{images.dtype} of shape {images.shape}"
        raise UsageError("split", f"{path}: images must be a whole number, not {kind}")
    if len(arrays) < len(TrainValid._fields):
        raise UsageError("split", f"{path} must have arrays train and valid, not {', '.join(arrays) or 'neither'}")
    return TrainValid(**arrays), None if images is None else int(images)
