"""Accuracy on images that a network was not trained on: of a trained network, or of a supernet as it stands."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gaea_jax import processes
from gaea_jax.data import Dataset, Split, StoredSplit, eval_batches, take
from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture
from gaea_jax.train.loop import split_over
from gaea_jax.train.state import SearchState

EVAL_BATCH = 256
STATISTICS = ("batch", "running")

# Images [B, H, W, C], labels [B] and mask [B].
Batch = tuple[jax.Array, jax.Array, jax.Array]


def accuracy_on(
    net: nn.Module,
    variables: Any,
    split: Split | StoredSplit,
    dataset: Dataset,
    tops: Sequence[int] = (1,),
    devices: Sequence[jax.Device] | None = None,
) -> list[float]:
    """Accuracy of a trained network, with running statistics and without augmentation.

    Args:
      net: the network.
      variables: its parameters and other collections.
      split: the images to test on.
      dataset: normalises them.
      tops: for each accuracy how many classes a network may name for an image, at most as many as there are.
      devices: where the variables are, to spread each batch over; all by default.

    Returns:
      Percent of the images of the split, one number for each of `tops`.
    """

    @jax.jit
    def correct(variables: Any, x: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
        logits: Any = net.apply(variables, x, train=False)
        _, named = jax.lax.top_k(logits, max(tops))
        right = (named == y[:, None]) & counts[:, None]
        return jnp.stack([jnp.sum(right[:, :top]) for top in tops])

    devices = devices if devices is not None else jax.devices()
    # Filled up, so that each device has as many.
    batch_size = -(-min(EVAL_BATCH, split.size) // len(devices)) * len(devices)
    total = np.zeros(len(tops), np.int64)
    for batch in eval_batches(split, batch_size, dataset.mean, dataset.std):
        total += np.asarray(correct(variables, *processes.put(batch, split_over(devices))))
    return [100 * int(count) / split.size for count in total]


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Some of many images, evenly spread over their order, which may be that of their classes.

    Args:
      indices: numbers of images, [n], at least one.
      count: how many to take, at least one.

    Returns:
      ``min(count, n)`` of them.

    Example:
      >>> spread(np.arange(100, 110), 4).tolist()
      [100, 103, 106, 109]
    """
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]


def held_out_batches(
    dataset: Dataset, indices: np.ndarray, batch_size: int, devices: Sequence[jax.Device] | None = None
) -> list[Batch]:
    """Training images that the weights do not see, loaded once and not augmented, for `supernet_accuracy`.

    Args:
      dataset: its train split has the images.
      indices: numbers of the images, [n], at least one; what does not fill a batch is left out.
      batch_size: images in a batch, or all if there are fewer.
      devices: where the state will be, to spread each batch over if their number divides it; all by default.

    Returns:
      The batches.
    """
    devices = devices if devices is not None else jax.devices()
    batch_size = min(batch_size, len(indices))
    images = len(indices) // batch_size * batch_size
    batches = eval_batches(take(dataset.train, indices[:images]), batch_size, dataset.mean, dataset.std)
    if batch_size % len(devices):
        return list(batches)
    return [processes.put(batch, split_over(devices)) for batch in batches]


def supernet_accuracy(
    net: nn.Module, batches: Sequence[Batch], statistics: str
) -> Callable[[SearchState, Mixture], float]:
    """Accuracy of a supernet under a mixture.

    Args:
      net: the supernet.
      batches: held-out images, see `held_out_batches`; all of them count.
      statistics: ``"batch"`` normalises by the statistics of each batch, which is how the weights were trained;
        ``"running"`` by the running ones, which average over all mixtures of the last steps.

    Returns:
      ``(state, mixture) -> accuracy`` in percent.

    Raises:
      UsageError: on ``eval_statistics``, if it is neither.
    """
    if statistics not in STATISTICS:
        raise UsageError("eval_statistics", f"{statistics!r} is unknown; known are {', '.join(STATISTICS)}")

    @jax.jit
    def correct(params: Any, collections: Any, mixture: Mixture, x: jax.Array, y: jax.Array) -> jax.Array:
        variables = {"params": params["weights"], **collections}
        if statistics == "batch":
            logits, _ = net.apply(variables, x, mixture, train=True, mutable=list(collections))
        else:
            logits = net.apply(variables, x, mixture, train=False)
        return jnp.sum(jnp.argmax(logits, axis=-1) == y)

    def accuracy(state: SearchState, mixture: Mixture) -> float:
        counts = [correct(state.params, state.collections, mixture, x, y) for x, y, _ in batches]
        return 100 * sum(map(int, counts)) / sum(len(y) for _, y, _ in batches)

    return accuracy
