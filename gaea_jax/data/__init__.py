"""Data sets in memory or on disk, augmentation in JAX, and batches that follow from the step alone."""

from gaea_jax.data.augment import Augmentation, Recipe, augment, cutout, normalise, prepare
from gaea_jax.data.colour import IMAGENET_JITTER, Jitter, colour_jitter
from gaea_jax.data.datasets import Dataset, load_dataset, open_dataset
from gaea_jax.data.device import Batches, SearchSource, eval_batches
from gaea_jax.data.halves import TrainValid, first_and_last_half, load_train_valid
from gaea_jax.data.order import Order, make_order
from gaea_jax.data.shuffle import shuffled
from gaea_jax.data.sources import OBJECTIVES, epoch_batches, random_batches, search_source
from gaea_jax.data.splits import Split, StoredSplit, take
from gaea_jax.data.stream import Feed, Stream

__all__ = [
    "IMAGENET_JITTER",
    "OBJECTIVES",
    "Augmentation",
    "Batches",
    "Dataset",
    "Feed",
    "Jitter",
    "Order",
    "Recipe",
    "SearchSource",
    "Split",
    "StoredSplit",
    "Stream",
    "TrainValid",
    "augment",
    "colour_jitter",
    "cutout",
    "epoch_batches",
    "eval_batches",
    "first_and_last_half",
    "load_dataset",
    "load_train_valid",
    "make_order",
    "normalise",
    "open_dataset",
    "prepare",
    "random_batches",
    "search_source",
    "shuffled",
    "take",
]
