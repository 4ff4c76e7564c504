"""Derived networks: one genotype as a stand-alone network, and supernet weights for it."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.ops import Node, nas_bench_201_operation
from gaea_jax.nets.skeleton import skeleton
from gaea_jax.spaces.nas_bench_201 import EDGES, Genotype, NASBench201


@functools.singledispatch
def network(
    space: Any,
    genotype: Any,
    *,
    channels: int,
    cells: int,
    num_classes: int,
    dtype: DTypeLike = jnp.float32,
    auxiliary: bool = False,
    stem: str = "cifar",
    remat: bool = False,
    shared: bool = False,
) -> nn.Module:
    """The stand-alone network of a genotype.

    Args:
      space: the search space of the genotype.
      genotype: what the space's ``decode`` or ``parse`` returns.
      channels: C, the width of the first stage.
      cells: number of cells (for NAS-Bench-201 and NAS-Bench-1Shot1 the number in each of the three stages).
      num_classes: number of logits.
      dtype: compute type; parameters and BatchNorm statistics are float32 whatever it is.
      auxiliary: whether there is a second classifier in the middle, which training alone uses. Of the DARTS space only,
        like all that follows.
      stem: ``"cifar"``, or ``"imagenet"``, which divides the size of the image by 8 before the first cell.
      remat: whether the backward pass computes the inside of each cell again instead of keeping it: less memory, a
        third more time.
      shared: whether nodes that have the same operation of the same input share its features, as in the supernet of
        EnTranNAS.

    Returns:
      A Linen module with ``apply(variables, x, train=...)``: normalised images x [B, H, W, channels of the
      image], H and W divisible by 4 (by 32 with the ImageNet stem), to logits [B, num_classes], float32 at least; with
      ``auxiliary`` and ``train=True`` to the logits and those of the second classifier. ``apply`` also takes
      ``drop_path``, the probability with which a branch is dropped for an image in training; unless that is the Python
      number 0.0, it draws from the random stream ``"drop_path"``. Collections: ``params`` and ``batch_stats``.

    Raises:
      TypeError: there is no network for this kind of space.
      UsageError: on ``genotype``, if it is not one of the space; on ``channels`` or ``cells`` for a size it cannot
        have; on ``auxiliary_weight``, ``stem``, ``remat`` or ``share_features`` for what the space has not; from
        ``apply``, on ``dataset`` and ``auxiliary_weight``, for images of another shape, and on ``drop_path``, where the
        space has none.
    """
    raise TypeError(f"no network for a space of type {type(space).__name__}")


@functools.singledispatch
def inherit(space: Any, variables: Mapping[str, Any], genotype: Any) -> dict[str, Any]:
    """Supernet variables for the derived network of a genotype.

    Args:
      space: the search space of both.
      variables: ``{"params": ..., "batch_stats": ...}`` of the supernet.
      genotype: the genotype to derive.

    Returns:
      Variables for `network` of the same size. BatchNorm scales and offsets that the supernet does not have are
      1 and 0, so that the network computes what the supernet computes under the one-hot mixture of the genotype; but
      for the poolings of the DARTS space, which a supernet normalises and a network does not.

    Raises:
      TypeError: there is no derived network for this kind of space.
      UsageError: on ``genotype``, if it is not one of the space; on ``variables``, if its networks have other shapes
        than the supernet: with partial channels, or with the stem for ImageNet.
    """
    raise TypeError(f"no derived network for a space of type {type(space).__name__}")


def check_plain(space: Any, auxiliary: bool, stem: str, remat: bool, shared: bool) -> None:
    """Refuses what only networks of the DARTS space have.

    Args:
      space: the search space.
      auxiliary: as for `network`, and so all that follow.
      stem: what comes before the cells.
      remat: whether cells are computed again.
      shared: whether nodes share features.

    Raises:
      UsageError: on ``auxiliary_weight``, ``stem``, ``remat`` or ``share_features``.
    """
    if auxiliary:
        raise UsageError("auxiliary_weight", f"must be 0 for {space.name}, which has no auxiliary head")
    if stem != "cifar":
        raise UsageError("stem", f"must be 'cifar' for {space.name}, not {stem!r}")
    if remat:
        raise UsageError("remat", f"is not for {space.name}; the DARTS space has it")
    if shared:
        raise UsageError("share_features", f"is not for {space.name}; the DARTS space has it")


def check_no_drop_path(drop_path: jax.Array | float, of: str) -> None:
    """Refuses to drop paths where there are none to drop.

    Args:
      drop_path: the probability, which must be the Python number 0.
      of: whose networks these are, for the error.

    Raises:
      UsageError: on ``drop_path``.
    """
    if not isinstance(drop_path, int | float) or drop_path:
        raise UsageError("drop_path", f"must be 0 for {of}, whose recipe drops no paths")


class DerivedCell(nn.Module):
    """A NAS-Bench-201 cell with one operation an edge, BatchNorm affine.

    Attributes:
      genotype: the operation of each edge.
      dtype: compute type.
    """

    genotype: Genotype
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, C]."""
        nodes = [Node.of(x)]
        for node in (1, 2, 3):
            total = jnp.zeros_like(x)
            for (target, source), operation in zip(EDGES, self.genotype.cell, strict=True):
                if target == node and operation != "none":
                    total += nas_bench_201_operation(
                        operation,
                        nodes[source],
                        affine=True,
                        dtype=self.dtype,
                        train=train,
                        name=f"edge_{target}_{source}_{operation}",
                    )
            nodes.append(Node.of(total))
        return nodes[3].features


class NASBench201Network(nn.Module):
    """The stand-alone network of a NAS-Bench-201 genotype; see `network`.

    Attributes:
      genotype: the cell.
      channels: C.
      cells: N.
      num_classes: number of logits.
      dtype: compute type.
    """

    genotype: Genotype
    channels: int
    cells: int
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, drop_path: jax.Array | float = 0.0) -> jax.Array:
        """Images [B, H, W, channels of the image] to logits [B, num_classes]."""
        check_no_drop_path(drop_path, "NAS-Bench-201")

        def cell(x: jax.Array, name: str) -> jax.Array:
            return DerivedCell(self.genotype, self.dtype, name=name)(x, train)

        return skeleton(
            x,
            cell,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            dtype=self.dtype,
            train=train,
        )


@network.register
def _network_nas_bench_201(
    space: NASBench201,
    genotype: Genotype,
    *,
    auxiliary: bool = False,
    stem: str = "cifar",
    remat: bool = False,
    shared: bool = False,
    **size: Any,
) -> NASBench201Network:
    space.check(genotype)
    check_plain(space, auxiliary, stem, remat, shared)
    return NASBench201Network(genotype, **size)


@inherit.register
def _inherit_nas_bench_201(space: NASBench201, variables: Mapping[str, Any], genotype: Genotype) -> dict[str, Any]:
    space.check(genotype)
    chosen = {
        f"edge_{target}_{source}_{operation}" for (target, source), operation in zip(EDGES, genotype.cell, strict=True)
    }

    def derived(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        return {path: leaf for path, leaf in flatten_dict(tree).items() if not _in_cell(path) or path[1] in chosen}

    params, statistics = derived(variables["params"]), derived(variables["batch_stats"])
    for *path, name in list(statistics):
        if name == "mean" and _in_cell(path):
            params[*path, "scale"] = jnp.ones_like(statistics[*path, name])
            params[*path, "bias"] = jnp.zeros_like(statistics[*path, name])
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(statistics)}


def _in_cell(path: tuple[str, ...] | list[str]) -> bool:
    return path[0].startswith("cell_")
