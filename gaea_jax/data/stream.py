"""Batches from a data set that stays on disk: read ahead by threads, augmented on the device.

The order, the keys and the augmentation are those of a source that lies on the device, and so are the bits of every
batch. Reading and its threads are Grain's: a data set over the steps, whose element is the uint8 batch of a step.
Images of any size are cropped and resized there too, from random numbers that follow from the key and the step.
"""

import hashlib
import math
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gaea_jax import processes
from gaea_jax.data.augment import Recipe
from gaea_jax.data.order import KINDS, Order
from gaea_jax.data.splits import StoredSplit
from gaea_jax.errors import UsageError

# A batch is read by one thread. Of images of 32x32, two threads read as many as sixteen (measured on two cores): TFDS
# holds Python's lock most of the time. Decoding and resizing larger ones lets go of it, and then every core has one.
THREADS = 4
AHEAD = 16
# Fewer batches wait where 16 would take more than this, but one for each thread.
AHEAD_BYTES = 2**30

_STEPS = 2**31 - 1  # What an int32 counts.


class Feed(NamedTuple):
    """What the batches of one stream are.

    Attributes:
      order: which images.
      recipe: what is done to them.
    """

    order: Order
    recipe: Recipe


class Stream:
    """Augmented training batches that are read from disk, called with the step; made by `search_source` and the like.

    Steps that follow each other come from batches read ahead; any other step costs the time of reading one. It is no
    pytree, and is for one thread. Its own threads end with the context of ``with stream:`` or with `close`, and a
    later call starts new ones.

    Args:
      split: the images.
      feeds: a pytree of `Feed`; a batch has this structure, with ``(images, labels)`` for each. In the streams of a
        search it is a dictionary.

    Raises:
      UsageError: on ``stream``, if JAX may not use the CPU, where the order of the images is worked out.
    """

    def __init__(self, split: StoredSplit, feeds: Any):
        try:
            cpu, *_ = jax.local_devices(backend="cpu")
        except RuntimeError as error:
            raise UsageError("stream", "needs JAX's CPU backend beside the others; add cpu to JAX_PLATFORMS") from error
        self._split = split
        # On the CPU, so that reading ahead never waits for the device that trains.
        self._feeds = jax.device_put(feeds, cpu)
        self._recipes = _each(lambda feed: feed.recipe, feeds)
        self._sharding: NamedSharding | None = None
        self._iterator: Any = None
        orders, _ = jax.tree_util.tree_flatten_with_path(_each(lambda feed: feed.order, feeds), is_leaf=_is_record)
        self._identity = {
            " ".join([*(key.key for key in path), name]): value
            for path, order in orders
            for name, value in _identity(split, order).items()
        }

    def __call__(self, step: int | jax.Array) -> Any:
        """The batch of a step.

        Args:
          step: integer, 0 or more.

        Returns:
          For each feed images float32 ``[batch_size, height, width, channels]`` and labels int32 ``[batch_size]``.

        Raises:
          UsageError: as `StoredSplit.read`.
        """
        import grain

        iterator = self._reader()
        try:
            if grain.experimental.get_next_index(iterator) != int(step):
                grain.experimental.set_next_index(iterator, int(step))
            arrays = next(iterator)
        except BaseException:
            # What was read ahead and the place of the iterator no longer fit together.
            self.close()
            raise
        return self._finished(step, arrays)

    def blank(self) -> Any:
        """A batch of black images, without reading any: it has the shapes, dtypes and devices of all batches."""

        def black(feed: Feed) -> tuple[np.ndarray, np.ndarray]:
            shape = (feed.order.batch_size, *self._split.image_shape)
            return np.zeros(shape, np.uint8), np.zeros(feed.order.batch_size, np.int32)

        return self._finished(0, _each(black, self._feeds))

    def place(self, sharding: NamedSharding) -> None:
        """Spreads the images of every batch over the devices of a mesh, each of which then augments its own.

        Args:
          sharding: of the run's state, on all devices of the mesh.
        """
        self._recipes = processes.put(self._recipes, sharding)
        self._sharding = NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))

    def get_state(self) -> dict[str, Any]:
        """Where the stream is and what it is, for a checkpoint.

        Returns:
          ``{"iterator": Grain's state, "pipeline": {...}}``, integers and arrays of fixed shapes. The first tells the
          step after the last batch (0 before the first batch, and after `close`), the second of every feed the data
          set, its size, the order's kind, key, subset and batch size, and the side of resized images.
        """
        return {"iterator": self._reader().get_state(), "pipeline": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where another stream of the same batches was.

        Args:
          state: what `get_state` gave.

        Raises:
          UsageError: on ``state``, if it is of a stream of other batches.
        """
        own = self.get_state()
        if _names(state) != _names(own):
            raise UsageError("state", f"must be of a stream of {', '.join(self._identity)}")
        saved = state["pipeline"]
        if other := [name for name, value in self._identity.items() if not np.array_equal(value, saved[name])]:
            raise UsageError("state", f"is of a stream with another {', another '.join(other)}; it must be of this one")
        try:
            self._reader().set_state(state["iterator"])
        except IndexError as error:
            raise UsageError("state", f"must be of a step in 0..{_STEPS}, not {state['iterator']}") from error

    def close(self) -> None:
        """Ends the threads, after the batches they are reading."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finished(self, step: int | jax.Array, arrays: Any) -> Any:
        return _prepared(self._recipes, step, processes.put(arrays, self._sharding))

    def _reader(self) -> Any:
        if self._iterator is None:
            import grain

            # Not a method: threads that are reading must not keep a forgotten stream alive.
            split, feeds = self._split, self._feeds

            def read(step: int) -> Any:
                return _each(lambda feed: _read(split, feed, step), feeds)

            threads, ahead = _reading(split, feeds)
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
            self._iterator = iter(grain.MapDataset.range(_STEPS).map(read).to_iter_dataset(options))
        return self._iterator


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _is_record(node: Any) -> bool:
    return isinstance(node, Feed | Order | Recipe)


def _each(function: Callable[..., Any], tree: Any, *more: Any) -> Any:
    return jax.tree.map(function, tree, *more, is_leaf=_is_record)


def _reading(split: StoredSplit, feeds: Any) -> tuple[int, int]:
    """How many threads read, and how many batches are read ahead."""
    threads = max(THREADS, os.cpu_count() or 1) if split.resized else THREADS
    sizes = [feed.order.batch_size for feed in jax.tree.leaves(feeds, is_leaf=_is_record)]
    return threads, max(threads, min(AHEAD, AHEAD_BYTES // (sum(sizes) * math.prod(split.image_shape))))


def _read(split: StoredSplit, feed: Feed, step: int) -> tuple[np.ndarray | jax.Array, ...]:
    indices = np.asarray(_indices(feed.order, step))
    return tuple(split.read(indices, np.asarray(_crop_draws(feed, step)) if split.resized else None))


@jax.jit
def _indices(order: Order, step: int) -> jax.Array:
    return order.indices(step)


@jax.jit
def _crop_draws(feed: Feed, step: int) -> jax.Array:
    return feed.recipe.crop_draws(step, feed.order.batch_size)


@jax.jit
def _prepared(recipes: Any, step: int | jax.Array, arrays: Any) -> Any:
    return _each(lambda recipe, read: (recipe(step, read[0]), read[1]), recipes, arrays)


def _identity(split: StoredSplit, order: Order) -> dict[str, Any]:
    subset = np.arange(0) if order.subset is None else np.asarray(order.subset)
    return {
        **({"image size": split.image_shape[0]} if split.resized else {}),
        "data set": _digest(f"{split.dataset} {split.name}".encode()),
        "size": split.size,
        "batch size": order.batch_size,
        "kind": KINDS.index(order.kind),
        "subset": _digest(subset.astype(np.int32).tobytes()),
        "key": np.asarray(jax.random.key_data(order.key)),
    }


def _digest(data: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
