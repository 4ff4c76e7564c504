"""Derived networks of the DARTS space, for CIFAR and ImageNet, and supernet weights for them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.darts.edges import find_edge, is_shared
from gaea_jax.nets.darts.operations import Kind, Operation, drop_path
from gaea_jax.nets.darts.skeleton import STEM_MULTIPLIER, Place, Preprocess, check_size, reductions, skeleton
from gaea_jax.nets.lowering import conv_general_dilated
from gaea_jax.nets.network import inherit, network
from gaea_jax.nets.ops import KERNEL_INIT, BatchNorm, Classifier, conv
from gaea_jax.spaces.darts import CELLS, DARTS, NODES, Genotype

Cell = tuple[tuple[tuple[str, int], ...], ...]


class DerivedCell(nn.Module):
    """A cell of a genotype: each node is the sum of its operations, BatchNorm affine.

    Attributes:
      cell: for each intermediate node its (operation, input) pairs.
      place: where the cell stands.
      dtype: compute type.
      shared: see `network`.
    """

    cell: Cell
    place: Place
    dtype: DTypeLike
    shared: bool

    @nn.compact
    def __call__(
        self, before: jax.Array, last: jax.Array, train: bool, rate: jax.Array | float | None = None
    ) -> jax.Array:
        """The outputs of the last two cells to [B, H, W, 4 features], H and W halved in a reduction cell.

        Every branch but an identity is dropped for an image with probability `rate`; None drops nothing.
        """
        states = list(Preprocess(self.place, True, self.dtype, name="inputs")(before, last, train))
        step = 2 if self.place.reduction else 1
        results: dict[str, jax.Array] = {}
        for node, pairs in zip(NODES, self.cell, strict=True):
            total = jnp.zeros_like(states[0][:, ::step, ::step])
            for operation, source in pairs:
                stride = 1 if source in NODES else step
                kind = Kind(operation, self.place.features, stride, affine=True, norm_pools=False, dtype=self.dtype)
                name = f"from_{source}_{operation}" if self.shared else f"edge_{node}_{source}_{operation}"
                if name not in results:
                    results[name] = Operation(kind, 1, name=name)(states[source], train)[0]
                result = results[name]
                if rate is not None and not (operation == "skip_connect" and stride == 1):
                    result = drop_path(result, rate, self.make_rng("drop_path"))
                total += result
            states.append(total)
        return jnp.concatenate([states[node] for node in NODES], axis=-1)


class AuxiliaryHead(nn.Module):
    """A second classifier on features in the middle of the network, which only training uses.

    The PC-DARTS code has no BatchNorm after the second convolution of ImageNet's head; CIFAR's has one.

    Attributes:
      num_classes: number of logits.
      stem: ``"cifar"`` or ``"imagenet"``.
      dtype: compute type.
    """

    num_classes: int
    stem: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to logits [B, num_classes]."""
        stride = 3 if self.stem == "cifar" else 2
        least = 5 + stride
        if min(x.shape[1:3]) < least:
            sentence = f"must be 0 here: the auxiliary head needs features of {least}x{least}, and gets {x.shape[1:3]}"
            raise UsageError("auxiliary_weight", sentence)
        x = nn.avg_pool(nn.relu(x), (5, 5), (stride, stride))
        x = conv(128, 1, dtype=self.dtype, name="conv_0")(x)
        x = nn.relu(BatchNorm(128, True, self.dtype, name="norm_0")(x, train))
        x = nn.Conv(
            768,
            (2, 2),
            padding=((0, 0), (0, 0)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=KERNEL_INIT,
            conv_general_dilated=conv_general_dilated,
            name="conv_1",
        )(x)
        if self.stem == "cifar":
            x = BatchNorm(768, True, self.dtype, name="norm_1")(x, train)
        return Classifier(self.num_classes, name="classifier")(nn.relu(x))


class DARTSNetwork(nn.Module):
    """The stand-alone network of a DARTS genotype; see `network`.

    Attributes:
      genotype: both cells.
      channels: C.
      cells: L.
      num_classes: number of logits.
      dtype: compute type.
      auxiliary: whether there is an auxiliary head.
      stem: ``"cifar"`` or ``"imagenet"``.
      remat: whether the backward pass computes the inside of each cell again instead of keeping it.
      shared: whether nodes that have the same operation of the same input share its features.
    """

    genotype: Genotype
    channels: int
    cells: int
    num_classes: int
    dtype: DTypeLike = jnp.float32
    auxiliary: bool = False
    stem: str = "cifar"
    remat: bool = False
    shared: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, drop_path: jax.Array | float = 0.0
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Images [B, H, W, channels of the image] to logits [B, num_classes], in training with the auxiliary ones."""
        rate = None if not train or (isinstance(drop_path, int | float) and drop_path == 0) else drop_path
        derived_cell = nn.remat(DerivedCell, static_argnums=(3,)) if self.remat else DerivedCell
        seen: list[jax.Array] = []

        def cell(before: jax.Array, last: jax.Array, place: Place) -> jax.Array:
            pairs = getattr(self.genotype, CELLS[place.reduction])
            return derived_cell(pairs, place, self.dtype, self.shared, name=f"cell_{place.number}")(
                before, last, train, rate
            )

        logits = skeleton(
            x,
            cell,
            stem=self.stem,
            stem_features=STEM_MULTIPLIER * self.channels if self.stem == "cifar" else self.channels,
            channels=self.channels,
            cells=self.cells,
            num_classes=self.num_classes,
            dtype=self.dtype,
            train=train,
            look=seen.append,
        )
        if not self.auxiliary or not (train or self.is_initializing()):
            return logits
        auxiliary = AuxiliaryHead(self.num_classes, self.stem, self.dtype, name="auxiliary")(seen[0], train)
        return (logits, auxiliary) if train else logits


@network.register
def _network_darts(
    space: DARTS, genotype: Genotype, *, channels: int, cells: int, num_classes: int, **rest: Any
) -> DARTSNetwork:
    space.check(genotype)
    check_size(channels, cells)
    return DARTSNetwork(genotype, channels, cells, num_classes, **rest)


@inherit.register
def _inherit_darts(space: DARTS, variables: Mapping[str, Any], genotype: Genotype) -> dict[str, Any]:
    space.check(genotype)
    params, statistics = (flatten_dict(variables[name]) for name in ("params", "batch_stats"))
    if any(path[0] == "stem_0" for path in params):
        raise UsageError("variables", "are of a supernet for ImageNet, whose stem is wider than that of its networks")
    widths = {leaf.shape[-1] for path, leaf in statistics.items() if path[0] == "cell_0"}
    if len(widths) > 1:
        raise UsageError("variables", "are of a supernet with partial channels; wants operations that see all channels")
    count = len({path[0] for path in params if path[0].startswith("cell_")})

    def shared(path: tuple[str, ...]) -> bool:
        return not path[0].startswith("cell_") or path[1] == "inputs"

    own, running = ({path: leaf for path, leaf in tree.items() if shared(path)} for tree in (params, statistics))
    for *path, name in list(running):
        if name == "mean" and path[0].startswith("cell_"):
            own[*path, "scale"] = jnp.ones_like(running[*path, name])
            own[*path, "bias"] = jnp.zeros_like(running[*path, name])
    for number in range(count):
        cell, reduction = f"cell_{number}", number in reductions(count)
        for node, pairs in zip(NODES, getattr(genotype, CELLS[reduction]), strict=True):
            for operation, source in pairs:
                branch = f"edge_{node}_{source}_{operation}"
                for tree, kept in ((params, own), (statistics, running)):
                    for path, leaf in tree.items():
                        rows = is_shared(reduction, len(leaf))
                        module, place = find_edge(operation, node, source, reduction, rows)
                        if path[:2] == (cell, module) and "pool" not in operation:
                            kept[cell, branch, path[2]] = leaf[place : place + 1]
                for path, leaf in list(running.items()):
                    if path[:2] == (cell, branch) and path[2].startswith("mean"):
                        own[cell, branch, path[2].replace("mean", "scale")] = jnp.ones_like(leaf)
                        own[cell, branch, path[2].replace("mean", "bias")] = jnp.zeros_like(leaf)
    return {"params": unflatten_dict(own), "batch_stats": unflatten_dict(running)}
