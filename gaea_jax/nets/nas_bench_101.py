"""The stand-alone networks of NAS-Bench-101, which those of NAS-Bench-1Shot1 are too.

Stem, three stacks of N cells at C, 2C and 4C channels with a 2x2 max-pooling between them, and a linear layer, as in
the released code of `NAS-Bench-101 <https://arxiv.org/abs/1902.09635>`_; its tables are of C = 128 and N = 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.errors import UsageError
from gaea_jax.nets.lowering import max_pool
from gaea_jax.nets.network import check_no_drop_path, check_plain, network
from gaea_jax.nets.ops import Classifier, ConvNormRelu, check_images, nas_bench_101_operation
from gaea_jax.spaces.nas_bench_1shot1 import Genotype as ChoiceGenotype
from gaea_jax.spaces.nas_bench_1shot1 import NASBench1Shot1
from gaea_jax.spaces.nas_bench_101 import Genotype


def node_channels(matrix: np.ndarray, features: int) -> list[int]:
    """How many channels each node between input and output has.

    Those that the output reads share its channels evenly, the first of them one more where that leaves some over; the
    others have as many as the widest that reads them.

    Args:
      matrix: bool [nodes, nodes], a cell whose nodes all count; rows are sources.
      features: channels of the output, at least as many as nodes that it reads.

    Returns:
      The channels of nodes 1 to ``nodes - 2``.

    Example:
      >>> node_channels(np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], bool), 5)
      [3, 2]
    """
    nodes = len(matrix)
    channels = [0] * nodes
    joined = np.flatnonzero(matrix[1:, -1]) + 1
    for place, node in enumerate(joined.tolist()):
        channels[node] = features // len(joined) + (place < features % len(joined))
    for node in reversed(range(1, nodes - 1)):
        if not matrix[node, -1]:
            channels[node] = max(channels[reader] for reader in np.flatnonzero(matrix[node]).tolist())
    return channels[1:-1]


class Cell(nn.Module):
    """A cell: nodes add what they read, and the output joins it.

    Whoever reads the input reads a 1x1 convolution of it; a reader of fewer channels than a node has drops the last.

    Attributes:
      genotype: the cell, pruned.
      features: channels of the output.
      dtype: compute type.
    """

    genotype: Genotype
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, features]."""
        matrix = self.genotype.matrix()
        last = len(matrix) - 1
        channels = [*node_channels(matrix, self.features), self.features]

        def projected(node: int) -> jax.Array:
            return ConvNormRelu(channels[node - 1], 1, self.dtype, name=f"input_{node}")(x, train)

        nodes = {0: x}
        for node, operation in enumerate(self.genotype.operations, start=1):
            read = [nodes[source][..., : channels[node - 1]] for source in range(1, node) if matrix[source, node]]
            if matrix[0, node]:
                read.append(projected(node))
            total = sum(read[1:], read[0])
            nodes[node] = nas_bench_101_operation(
                operation, total, dtype=self.dtype, train=train, name=f"node_{node}_{operation}"
            )
        joined = [nodes[node] for node in range(1, last) if matrix[node, last]]
        if not joined:
            return projected(last)
        out = jnp.concatenate(joined, axis=-1)
        return out + projected(last) if matrix[0, last] else out


class NASBench101Network(nn.Module):
    """The stand-alone network of a cell of NAS-Bench-101; see `network`.

    Attributes:
      genotype: the cell, pruned.
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
        check_no_drop_path(drop_path, "cells of NAS-Bench-101")
        check_images(x, 4)
        x = ConvNormRelu(self.channels, 3, self.dtype, name="stem")(x.astype(self.dtype), train)
        for stack in range(3):
            if stack:
                x = max_pool(x, 2, 2)
            for number in range(self.cells):
                cell = Cell(self.genotype, self.channels * 2**stack, self.dtype, name=f"cell_{stack}_{number}")
                x = cell(x, train)
        return Classifier(self.num_classes, name="classifier")(x)


@network.register
def _network_nas_bench_1shot1(
    space: NASBench1Shot1,
    genotype: ChoiceGenotype,
    *,
    channels: int,
    auxiliary: bool = False,
    stem: str = "cifar",
    remat: bool = False,
    shared: bool = False,
    **size: Any,
) -> NASBench101Network:
    space.check(genotype)
    check_plain(space, auxiliary, stem, remat, shared)
    cell = genotype.cell()
    joined = int(cell.matrix()[1:, -1].sum())
    if channels < joined:
        raise UsageError("channels", f"must be {joined} or more, a channel for each node that the output reads")
    return NASBench101Network(cell, channels, **size)
