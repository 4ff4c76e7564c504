"""Which images make up the batch of each step, found from the step alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.data.shuffle import shuffled
from gaea_jax.errors import UsageError

KINDS = ("epochs", "random", "independent")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The images of every batch; a pytree, made by `make_order`.

    The images on the device and those of a stream are picked by the same record, so both give the same batches.

    Attributes:
      key: random key that everything follows from.
      subset: int32 ``[size]``, numbers of the images that are drawn from; None if they are ``0 .. size - 1``.
      size: how many images are drawn from.
      batch_size: images in every batch.
      kind: see `make_order`.
    """

    key: jax.Array
    subset: jax.Array | None
    size: int = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps that share one order of the images: 1 unless ``kind`` is "epochs"."""
        return -(-self.size // self.batch_size) if self.kind == "epochs" else 1

    def indices(self, step: int | jax.Array) -> jax.Array:
        """Which images make up the batch of a step.

        Args:
          step: integer, 0 or more.

        Returns:
          int32 ``[batch_size]``; unless ``kind`` is "independent", no image twice.
        """
        if self.kind == "independent":
            key = jax.random.fold_in(self.key, step)
            places = jax.random.randint(key, (self.batch_size,), 0, self.size, jnp.int32)
        else:
            epoch, step_in_epoch = step // self.steps_per_epoch, step % self.steps_per_epoch
            positions = (step_in_epoch * self.batch_size + jnp.arange(self.batch_size)) % self.size
            places = shuffled(jax.random.fold_in(self.key, epoch), positions, self.size)
        return places if self.subset is None else self.subset[places]


def make_order(
    kind: str, key: jax.Array, images: int, batch_size: int, subset: np.ndarray | jax.Array | None = None
) -> Order:
    """Makes an `Order`.

    - "epochs" goes through the images epoch by epoch, each epoch in a new order. An epoch has
      ``ceil(size / batch_size)`` steps; its last batch is filled up with the first images of the same order, so that
      all batches have one size and every image comes at least once.
    - "random" draws a batch anew at every step: no image twice within a batch, and steps independent of each other.
    - "independent" draws every image of a batch on its own, with replacement.

    Args:
      kind: one of these three.
      key: a JAX random key.
      images: number of images there are.
      batch_size: from 1 to the number of images drawn from.
      subset: integers ``[size]``, each in ``0 .. images - 1``: draw from these only; None is all.

    Returns:
      The order.

    Raises:
      UsageError: ``kind`` is unknown, ``subset`` holds anything else, or ``batch_size`` is out of range.

    Example:
      >>> order = make_order("epochs", jax.random.key(0), images=9, batch_size=2, subset=np.array([2, 5, 8, 4]))
      >>> order.indices(0).tolist(), order.indices(1).tolist()
      ([5, 4], [8, 2])
    """
    if kind not in KINDS:
        raise UsageError("kind", f"{kind!r} is unknown; known are {', '.join(KINDS)}")
    if subset is not None:
        numbers = np.asarray(subset)
        if not (numbers.ndim == 1 and numbers.dtype.kind in "iu" and np.all((numbers >= 0) & (numbers < images))):
            raise UsageError("subset", f"must be a list of whole numbers in 0..{images - 1}")
        subset = jnp.asarray(numbers, jnp.int32)
    size = images if subset is None else len(subset)
    if not 1 <= batch_size <= size:
        raise UsageError("batch_size", f"must be between 1 and the {size} images there are, not {batch_size}")
    return Order(key, subset, size, batch_size, kind)
