"""Parameters and multiply-adds of a network, from shapes alone: nothing is allocated or computed."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


class Count(NamedTuple):
    """Size of a network.

    Attributes:
      parameters: number of trainable parameters.
      multiply_adds: of one example, in convolutions and linear layers; BatchNorm, pooling and biases are not counted.
      biases: additions of biases in linear layers, which the tables of NAS-Bench-201 count as well.
    """

    parameters: int
    multiply_adds: int
    biases: int


def count(net: nn.Module, image_shape: tuple[int, ...], *args: Any) -> Count:
    """Counts parameters and multiply-adds of a network on one image, as it is evaluated.

    Args:
      net: a network called as ``net(x, *args, train=...)``.
      image_shape: (H, W, channels) of an image.
      *args: further arguments of the network, such as the mixture of a supernet.

    Returns:
      The `Count`. Of a conditional, the largest branch counts.

    Example:
      >>> from gaea_jax.nets import network
      >>> from gaea_jax.spaces import get_space
      >>> space = get_space("nas_bench_201")
      >>> skips = space.parse("|skip_connect~0|+|skip_connect~0|skip_connect~1|+"
      ...                     "|skip_connect~0|skip_connect~1|skip_connect~2|")
      >>> count(network(space, skips, channels=16, cells=5, num_classes=10), (32, 32, 3))
      Count(parameters=73306, multiply_adds=7783040, biases=10)
    """
    x = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(lambda x, *args: net.init(jax.random.key(0), x, *args, train=False), x, *args)
    program = jax.make_jaxpr(lambda variables, x, *args: net.apply(variables, x, *args, train=False))
    params = flatten_dict(variables["params"])
    biases = sum(leaf.size for path, leaf in params.items() if path[-1] == "bias" and (*path[:-1], "kernel") in params)
    parameters = sum(leaf.size for leaf in params.values())
    return Count(parameters, _multiply_adds(program(variables, x, *args).jaxpr), biases)


def _multiply_adds(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    out: Any = equation.outvars[0].aval if equation.outvars else None
    operands: list[Any] = [var.aval for var in equation.invars]
    if name == "conv_general_dilated":
        kernel, numbers = operands[1].shape, equation.params["dimension_numbers"]
        return out.size * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out.size * math.prod(operands[0].shape[axis] for axis in contracted)
    if name == "while":
        raise NotImplementedError("the operations of a loop without a fixed length cannot be counted")
    inner = [_multiply_adds(jaxpr) for jaxpr in _inner(equation)]
    if name == "cond":
        return max(inner)
    return sum(inner) * equation.params.get("length", 1)


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(equation.params, is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr)):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
