"""Data sets as uint8 arrays, augmentation in JAX, and batches that are pure functions of the step."""

from gaea_jax.data.augment import Augmentation, augment, cutout, normalise, prepare
from gaea_jax.data.datasets import Dataset, Split, load_dataset
from gaea_jax.data.device import (
    Batches,
    SearchSource,
    epoch_batches,
    eval_batches,
    random_batches,
    search_source,
)
from gaea_jax.data.shuffle import shuffled

__all__ = [
    "Augmentation",
    "Batches",
    "Dataset",
    "SearchSource",
    "Split",
    "augment",
    "cutout",
    "epoch_batches",
    "eval_batches",
    "load_dataset",
    "normalise",
    "prepare",
    "random_batches",
    "search_source",
    "shuffled",
]
