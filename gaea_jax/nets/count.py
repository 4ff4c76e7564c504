"""Parameters and multiply-adds of a network, from shapes alone: nothing is allocated or computed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn


class Count(NamedTuple):
    """Size of a network.

    Attributes:
      parameters: number of trainable parameters.
      multiply_adds: of one example, by the convention of the NAS-Bench-201 tables: convolutions and linear
        layers, and one for each bias of a linear layer; BatchNorm and pooling are not counted.
    """

    parameters: int
    multiply_adds: int


def count(net: nn.Module, image_shape: tuple[int, ...], *args: Any) -> Count:
    """Counts parameters and multiply-adds of a network on one image.

    Args:
      net: a network called as ``net(x, *args, train=...)``.
      image_shape: (H, W, channels) of an image.
      *args: further arguments of the network, such as the mixture of a supernet.

    Returns:
      The `Count`.

    Example:
      >>> from gaea_jax.nets import network
      >>> from gaea_jax.spaces import get_space
      >>> space = get_space("nas_bench_201")
      >>> skips = space.parse("|skip_connect~0|+|skip_connect~0|skip_connect~1|+"
      ...                     "|skip_connect~0|skip_connect~1|skip_connect~2|")
      >>> count(network(space, skips, channels=16, cells=5, num_classes=10), (32, 32, 3))
      Count(parameters=73306, multiply_adds=7783050)
    """
    multiply_adds = 0

    def tally(call: Callable, call_args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        nonlocal multiply_adds
        out = call(*call_args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense):
            kernel = module.variables["params"]["kernel"]
            positions = math.prod(out.shape[1:-1])
            multiply_adds += positions * math.prod(kernel.shape) + (out.shape[-1] if module.use_bias else 0)
        return out

    with nn.intercept_methods(tally):
        x = jax.ShapeDtypeStruct((1, *image_shape), "float32")
        variables = jax.eval_shape(lambda x, *args: net.init(jax.random.key(0), x, *args, train=False), x, *args)
    return Count(sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), multiply_adds)
