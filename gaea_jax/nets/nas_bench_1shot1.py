"""The relaxed network of NAS-Bench-1Shot1: choice blocks that mix operations, and read mixtures of what is before them.

As GAEA's authors released it, from which its parameters can be counted: the output of a cell joins a projection of its
input and all blocks. BatchNorm has learnt scales here, and no pooling is normalised. The released code hardly averages
BatchNorm's statistics (a factor of TensorFlow in PyTorch's place); here they are averaged as everywhere.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.active import active_parameters
from gaea_jax.nets.darts.skeleton import reductions
from gaea_jax.nets.lowering import max_pool
from gaea_jax.nets.ops import Classifier, ConvNormRelu, ReluConvNorm, nas_bench_101_operation, shuffle
from gaea_jax.nets.supernet import Mixture, check_without_engine, supernet
from gaea_jax.spaces.base import check_tables
from gaea_jax.spaces.nas_bench_1shot1 import OPERATIONS, NASBench1Shot1


class ChoiceBlock(nn.Module):
    """The weighted sum of the operations, or the one that is active.

    With partial channels they see the first 1 / K of these, the others pass by, and the channels are interleaved.

    Attributes:
      partial: K; 1 lets the operations see all channels.
      dtype: compute type.
    """

    partial: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array, active: jax.Array | None, train: bool) -> jax.Array:
        """[B, H, W, C], weights [3] and bool [3], of which one is True, or None for all, to [B, H, W, C]."""
        seen = x.shape[-1] // self.partial

        def operation(name: str) -> Any:
            def run(block: nn.Module, x: jax.Array) -> jax.Array:
                return nas_bench_101_operation(name, x, dtype=self.dtype, train=train, name=name)

            return run

        operations = [operation(name) for name in OPERATIONS]
        first = x[..., :seen]
        # All operations have parameters from the start, whichever is active then.
        if active is None or self.is_initializing():
            mixed = sum_of(weights, [run(self, first) for run in operations])
        else:
            chosen = jnp.argmax(active)
            mixed = weights[chosen] * nn.switch(chosen, operations, self, first)
        if self.partial == 1:
            return mixed
        return shuffle(jnp.concatenate([mixed, x[..., seen:]], axis=-1), self.partial)


class ChoiceCell(nn.Module):
    """A cell: each block reads its own projection of the input and the blocks before, and the output joins them all.

    Attributes:
      space: which nodes read a mixture, and which all that is before them.
      features: channels of each block.
      partial: K of the partial channels.
      dtype: compute type.
    """

    space: NASBench1Shot1
    features: int
    partial: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """[B, H, W, C] and a mixture to [B, H, W, (blocks + 1) · features]."""
        weights = {name: table.astype(self.dtype) for name, table in mixture.weights.items()}
        rows = self.space.by_block(weights["inputs"])
        blocks: list[jax.Array] = []
        for number in range(1, self.space.blocks + 1):
            projected = ConvNormRelu(self.features, 1, self.dtype, name=f"input_{number}")(x, train)
            total = sum_of(rows.get(number, jnp.ones(number, self.dtype)), [projected, *blocks])
            block = ChoiceBlock(self.partial, self.dtype, name=f"block_{number}")
            active = None if mixture.active is None else mixture.active["operations"][number - 1]
            blocks.append(block(total, weights["operations"][number - 1], active, train))
        projected = ConvNormRelu(self.features, 1, self.dtype, name="input_output")(x, train)
        joined = zip(weights["output"][0], [projected, *blocks], strict=True)
        return jnp.concatenate([weight * node for weight, node in joined], axis=-1)


def sum_of(weights: jax.Array, terms: Sequence[jax.Array]) -> jax.Array:
    """The weighted sum of features [B, H, W, C], by weights [terms]."""
    return sum((weights[i] * term for i, term in enumerate(terms[1:], start=1)), weights[0] * terms[0])


class NASBench1Shot1Supernet(nn.Module):
    """The relaxed network of NAS-Bench-1Shot1; see `supernet`.

    Before the cells at a third and at two thirds a pooling halves the image, to 17 and 9 pixels a side of 32, since it
    pads, and the channels double.

    Attributes:
      space: one of the three.
      channels: C.
      cells: L.
      num_classes: number of logits.
      dtype: compute type.
      partial: K of the partial channels.
    """

    space: NASBench1Shot1
    channels: int
    cells: int
    num_classes: int
    dtype: DTypeLike = jnp.float32
    partial: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        """Images [B, H, W, channels of the image] to logits [B, num_classes]."""
        check_tables(self.space.choices, mixture.weights, "mixture")
        if mixture.active is not None:
            check_tables(self.space.choices, mixture.active, "mixture")
        if mixture.inactive != "skip":
            raise UsageError("method", f"needs edges that carry one operation each, which {self.space.name} has not")
        if x.ndim != 4:
            raise UsageError("dataset", f"wants image batches [B, H, W, channels], got {list(x.shape)}")
        features = self.channels
        x = ConvNormRelu(features, 3, self.dtype, name="stem")(x.astype(self.dtype), train)
        for number in range(self.cells):
            if number in reductions(self.cells):
                features *= 2
                padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
                x = max_pool(padded, 2, 2)
            x = ChoiceCell(self.space, features, self.partial, self.dtype, name=f"cell_{number}")(x, mixture, train)
        x = ReluConvNorm(features, 1, affine=False, dtype=self.dtype, name="last")(x, train)
        return Classifier(self.num_classes, name="classifier")(x)


@active_parameters.register
def _active_nas_bench_1shot1(net: NASBench1Shot1Supernet, params: Mapping[str, Any], mixture: Mixture) -> Any:
    if mixture.active is None:
        return jax.tree.map(lambda _: True, params)
    operations, output = mixture.active["operations"], mixture.active["output"][0]
    rows = net.space.by_block(mixture.active["inputs"])
    blocks = range(1, net.space.blocks + 1)
    # Whether the output comes to read a block, by itself or by way of others.
    counts: dict[int, jax.Array] = {}
    for block in reversed(blocks):
        readers = [counts[reader] & rows[reader][block] if reader in rows else counts[reader] for reader in counts]
        counts[block] = functools.reduce(jnp.logical_or, readers, output[block])
    active: dict[tuple[str, ...], jax.Array] = {("input_output",): output[0]}
    for block in blocks:
        active[f"input_{block}",] = counts[block] & rows[block][0] if block in rows else counts[block]
        for option, operation in enumerate(OPERATIONS):
            active[f"block_{block}", operation] = counts[block] & operations[block - 1, option]

    def mask(path: tuple[Any, ...], _: jax.Array) -> jax.Array | bool:
        names = tuple(entry.key for entry in path[1:3])
        return active.get(names, active.get(names[:1], True))

    return jax.tree_util.tree_map_with_path(mask, params)


@supernet.register
def _supernet_nas_bench_1shot1(
    space: NASBench1Shot1,
    *,
    channels: int,
    cells: int,
    partial: int = 1,
    stem: str = "cifar",
    engine: str | tuple[int, ...] = "all",
    shared: bool = False,
    **rest: Any,
) -> NASBench1Shot1Supernet:
    check_without_engine(space, stem, engine, shared)
    if cells < 3:
        raise UsageError("cells", f"must be 3 or more for {space.name}, not {cells}")
    if partial < 1 or channels % partial:
        raise UsageError("partial", f"must divide the {channels} channels, not {partial}")
    return NASBench1Shot1Supernet(space, channels, cells, partial=partial, **rest)
