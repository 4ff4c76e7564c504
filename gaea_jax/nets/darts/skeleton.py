"""The macro skeleton of the DARTS space, which its supernet and its stand-alone networks share.

A stem, a row of cells of which each sees the last two, and a linear head (`DARTS <https://arxiv.org/abs/1806.09055>`_,
section 3; the ImageNet stem is section 3.3's, in the form that `PC-DARTS <https://arxiv.org/abs/1907.05737>`_ searches
with too). Two of the cells halve the image and double the channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.darts.operations import FactorizedReduce
from gaea_jax.nets.ops import BatchNorm, Classifier, ReluConvNorm, check_images, conv

STEMS = {"cifar": 4, "imagenet": 32}
"""Stem to what the side of an image must be divisible by."""

STEM_MULTIPLIER = 3
"""Channels of a stem by C; the ImageNet networks alone have C."""


Engine = str | tuple[int, ...]


class Place(NamedTuple):
    """Where a cell stands.

    Attributes:
      number: counted from 0.
      features: channels of each of its nodes.
      reduction: whether it halves the image.
      after_reduction: whether its first input is twice as large as its second.
    """

    number: int
    features: int
    reduction: bool
    after_reduction: bool


def reductions(cells: int) -> frozenset[int]:
    """Which of so many cells halve the image: those at a third and at two thirds.

    Args:
      cells: L, the number of cells.

    Returns:
      Their numbers, counted from 0.
    """
    return frozenset((cells // 3, 2 * cells // 3))


def engine_layers(engine: Engine, cells: int) -> frozenset[int]:
    """Which cells of a supernet are engine cells, which alone have the whole mixture.

    Args:
      engine: ``"all"``, ``"none"``, the ``"first"`` or the ``"last"`` cell of either kind, or their numbers.
      cells: L, the number of cells.

    Returns:
      Their numbers, counted from 0.

    Raises:
      UsageError: on ``engine``, if that is none of these.
    """
    kinds = [sorted(reductions(cells)), sorted({*range(cells)} - reductions(cells))]
    named = {
        "all": range(cells),
        "none": (),
        "first": [min(kind) for kind in kinds if kind],
        "last": [max(kind) for kind in kinds if kind],
    }
    found = named.get(engine) if isinstance(engine, str) else engine
    if found is None or not {*found} <= {*range(cells)}:
        accepted = f"one of {', '.join(named)}, or numbers of cells from 0 to {cells - 1}"
        raise UsageError("engine", f"wants {accepted}, not {engine!r}")
    return frozenset(found)


def skeleton(
    x: jax.Array,
    cell: Callable[[jax.Array, jax.Array, Place], jax.Array],
    *,
    stem: str,
    stem_features: int,
    channels: int,
    cells: int,
    num_classes: int,
    dtype: DTypeLike,
    train: bool,
    look: Callable[[jax.Array], None] | None = None,
) -> jax.Array:
    """Runs a whole network around its cells; to be called in the compact method of a Linen module.

    Args:
      x: normalised images [B, H, W, any number of channels].
      cell: ``(two cells ago, last cell, place)`` to the output of the cell there.
      stem: ``"cifar"`` keeps the size of the image, ``"imagenet"`` divides it by 8 before the first cell.
      stem_features: channels of the stem.
      channels: C, channels of each node of the first cells.
      cells: L, the number of cells.
      num_classes: number of logits.
      dtype: compute type; parameters and BatchNorm statistics stay float32.
      train: batch statistics if True, running statistics if not.
      look: is called with the features after the second reduction, which an auxiliary head sees.

    Returns:
      Logits [B, num_classes], float32 at least.

    Raises:
      UsageError: on ``stem``, if it is unknown; on ``dataset``, if the side of the images is not divisible by 4, for
        ImageNet's stem by 32.
    """
    if stem not in STEMS:
        raise UsageError("stem", f"{stem!r} is unknown; known are {', '.join(STEMS)}")
    divisor = STEMS[stem]
    check_images(x, divisor, f" for the stem {stem}")
    x = x.astype(dtype)
    if stem == "cifar":
        before = last = ReluConvNorm(stem_features, 3, relu=False, dtype=dtype, name="stem")(x, train)
    else:
        x = conv(stem_features // 2, 3, 2, dtype=dtype, name="stem_0_conv")(x)
        x = BatchNorm(stem_features // 2, True, dtype, name="stem_0_norm")(x, train)
        before = ReluConvNorm(stem_features, 3, 2, dtype=dtype, name="stem_0")(x, train)
        last = ReluConvNorm(stem_features, 3, 2, dtype=dtype, name="stem_1")(before, train)
    features, after_reduction = channels, stem == "imagenet"
    for index in range(cells):
        reduction = index in reductions(cells)
        features *= 1 + reduction
        place = Place(index, features, reduction, after_reduction)
        before, last = last, cell(before, last, place)
        after_reduction = reduction
        if look and index == 2 * cells // 3:
            look(last)
    return Classifier(num_classes, name="classifier")(last)


class Preprocess(nn.Module):
    """Brings both inputs of a cell to its size and channels.

    Attributes:
      place: where the cell stands.
      affine: whether BatchNorm has a learnt scale and offset.
      dtype: compute type.
    """

    place: Place
    affine: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, before: jax.Array, last: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """The inputs [B, H or 2 H, W or 2 W, any] and [B, H, W, any] to two of [B, H, W, features]."""
        features = self.place.features
        second = ReluConvNorm(features, 1, affine=self.affine, dtype=self.dtype, name="input_1")(last, train)
        if self.place.after_reduction:
            reduce = FactorizedReduce(features, before.shape[-1], self.affine, self.dtype, name="input_0")
            return reduce(before, train), second
        first = ReluConvNorm(features, 1, affine=self.affine, dtype=self.dtype, name="input_0")(before, train)
        return first, second


def check_size(channels: int, cells: int) -> None:
    """Refuses sizes that no network of the space has.

    Args:
      channels: C.
      cells: L.

    Raises:
      UsageError: on ``channels``, if they are odd, which leaves no two halves for a reduction; on ``cells`` below 1.
    """
    if channels < 2 or channels % 2:
        raise UsageError("channels", f"must be even and 2 or more, not {channels}")
    if cells < 1:
        raise UsageError("cells", f"must be 1 or more, not {cells}")
