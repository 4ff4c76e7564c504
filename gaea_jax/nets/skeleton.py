"""The macro skeleton of NAS-Bench-201, which its supernet and its stand-alone networks share.

Stem, three stages of N cells at C, 2C and 4C channels with a residual block of stride 2 between them, and a
head (`NAS-Bench-201 <https://arxiv.org/abs/2001.00326>`_, section 2.1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from gaea_jax.nets.ops import BatchNorm, Classifier, ReluConvNorm, avg_pool, check_images, conv


class ResidualBlock(nn.Module):
    """Two 3x3 ReLU-convolution-BatchNorm, the first of stride 2, beside a pooled 1x1 convolution without BatchNorm.

    Attributes:
      features: output channels.
      dtype: compute type.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H / 2, W / 2, features]."""
        y = ReluConvNorm(self.features, 3, 2, dtype=self.dtype, name="conv_a")(x, train)
        y = ReluConvNorm(self.features, 3, 1, dtype=self.dtype, name="conv_b")(y, train)
        shortcut = conv(self.features, 1, dtype=self.dtype, name="shortcut")(avg_pool(x, 2, 2))
        return y + shortcut


def skeleton(
    x: jax.Array,
    cell: Callable[[jax.Array, str], jax.Array],
    *,
    channels: int,
    cells: int,
    num_classes: int,
    dtype: DTypeLike,
    train: bool,
) -> jax.Array:
    """Runs a whole network around its cells; to be called in the compact method of a Linen module.

    Args:
      x: normalised images [B, H, W, any number of channels], H and W divisible by 4.
      cell: ``(x, name)`` to the output of the cell of that name, of the shape of x; names are
        ``cell_<stage>_<n>``.
      channels: C, the width of the first stage.
      cells: N, the number of cells in a stage.
      num_classes: number of logits.
      dtype: compute type; parameters and BatchNorm statistics stay float32.
      train: batch statistics if True, running statistics if not.

    Returns:
      Logits [B, num_classes], float32 at least.

    Raises:
      UsageError: on ``dataset``, if x is not a batch of images of such a size.
    """
    check_images(x, 4)
    x = ReluConvNorm(channels, 3, relu=False, dtype=dtype, name="stem")(x.astype(dtype), train)
    for stage in range(3):
        if stage:
            x = ResidualBlock(channels * 2**stage, dtype, name=f"reduce_{stage}")(x, train)
        for n in range(cells):
            x = cell(x, f"cell_{stage}_{n}")
    x = nn.relu(BatchNorm(x.shape[-1], True, dtype, name="last_norm")(x, train))
    return Classifier(num_classes, name="classifier")(x)
