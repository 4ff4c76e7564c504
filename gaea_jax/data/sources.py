"""Sources of training batches: on the device where the images are in memory, a stream where they are stored."""

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.data.augment import Augmentation, Recipe
from gaea_jax.data.datasets import Dataset
from gaea_jax.data.device import Batches, SearchSource
from gaea_jax.data.halves import TrainValid, first_and_last_half
from gaea_jax.data.order import make_order
from gaea_jax.data.splits import Split, StoredSplit
from gaea_jax.data.stream import Feed, Stream
from gaea_jax.errors import UsageError

OBJECTIVES = ("single-level", "bilevel", "bilevel-unrolled")


def epoch_batches(
    split: Split | StoredSplit,
    key: jax.Array,
    batch_size: int,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Batches | Stream:
    """Batches that go through the images epoch by epoch, each epoch in a new order; see "epochs" of `make_order`.

    Args:
      split: the images and labels. From the host they are moved to the device once; from disk they are streamed.
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
    return _source(split, _feed("epochs", key, split.size, batch_size, (augmentation, mean, std)))


def random_batches(
    split: Split | StoredSplit,
    key: jax.Array,
    batch_size: int,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Batches | Stream:
    """Batches drawn anew at every step; see "random" of `make_order`.

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
    return _source(split, _feed("random", key, split.size, batch_size, (augmentation, mean, std)))


def search_source(
    dataset: Dataset,
    key: jax.Array,
    batch_size: int,
    *,
    objective: str,
    order: str,
    train_valid: TrainValid | None = None,
) -> SearchSource | Stream:
    """The batches of a search, for the weights and for the architecture, with the same augmentation.

    Single-level, both come from the whole train split: Li et al., `Geometry-Aware Gradient Algorithms for Neural
    Architecture Search <https://arxiv.org/abs/2004.07802>`_, section 2.2. The weights go through it epoch by epoch, the
    architecture has random batches, as in the released code on NAS-Bench-201.

    Bilevel, the weights go through one part of the train split epoch by epoch, and every image for the architecture is
    drawn from the other part independently, with replacement, as in the benchmark's code (``SearchDataset`` of
    `AutoDL-Projects <https://github.com/D-X-Y/AutoDL-Projects>`_).

    Args:
      dataset: its train split, augmentation and normalisation are used. A stored split is streamed.
      key: a JAX random key.
      batch_size: from 1 to the number of images of the train split, or of its smaller part.
      objective: "single-level", "bilevel" or "bilevel-unrolled".
      order: "alternating" gives the architecture batches of its own; "joint" gives one batch for both.
      train_valid: the two parts for a bilevel objective; None is `first_and_last_half`.

    Returns:
      A source: ``source(step)`` gives ``{"weights": (x, y)}`` and, for "alternating", ``"arch": (x, y)``.

    Raises:
      UsageError: ``objective`` or ``order`` is unknown; ``order`` is "joint" with a bilevel objective; ``split``, if a
        single-level objective has two parts; ``batch_size`` is out of range.
    """
    if objective not in OBJECTIVES:
        raise UsageError("objective", f"{objective!r} is unknown; known are {', '.join(OBJECTIVES)}")
    if order not in ("alternating", "joint"):
        raise UsageError("order", f'must be "alternating" or "joint", not {order!r}')
    size = dataset.train.size
    recipe = (dataset.augmentation, dataset.mean, dataset.std)
    weights_key, arch_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    if objective == "single-level":
        if train_valid is not None:
            raise UsageError(
                "split", "applies to bilevel objectives only; a single-level one takes all training images"
            )
        feeds = {"weights": _feed("epochs", weights_key, size, batch_size, recipe)}
        if order == "alternating":
            feeds["arch"] = _feed("random", arch_key, size, batch_size, recipe)
    else:
        if order == "joint":
            raise UsageError("order", f'must be "alternating" for the objective {objective}, whose two losses differ')
        train, valid = train_valid or first_and_last_half(size)
        smaller = min(len(train), len(valid))
        if not 1 <= batch_size <= smaller:
            parts = f"{len(train)} training and {len(valid)} validation images"
            raise UsageError("batch_size", f"must be between 1 and {smaller}: there are {parts}; it is {batch_size}")
        feeds = {
            "weights": _feed("epochs", weights_key, size, batch_size, recipe, train),
            "arch": _feed("independent", arch_key, size, batch_size, recipe, valid),
        }
    if isinstance(dataset.train, StoredSplit):
        return Stream(dataset.train, feeds)
    # Moved once here, so that both streams hold the same arrays.
    images, labels = jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels)
    return SearchSource(
        weights=Batches(images, labels, *feeds["weights"]),
        arch=Batches(images, labels, *feeds["arch"]) if "arch" in feeds else None,
    )


def _feed(
    kind: str,
    key: jax.Array,
    images: int,
    batch_size: int,
    recipe: tuple[Augmentation, tuple[float, ...], tuple[float, ...]],
    subset: np.ndarray | None = None,
) -> Feed:
    order = make_order(kind, jax.random.fold_in(key, 0), images, batch_size, subset)
    return Feed(order, Recipe(jax.random.fold_in(key, 1), *recipe))


def _source(split: Split | StoredSplit, feed: Feed) -> Batches | Stream:
    if isinstance(split, StoredSplit):
        return Stream(split, feed)
    return Batches(jnp.asarray(split.images), jnp.asarray(split.labels), *feed)
