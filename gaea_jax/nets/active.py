"""Which weights of a supernet take part in a step in which only some operations run."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from gaea_jax.nets.supernet import Mixture, NASBench201Supernet
from gaea_jax.spaces.nas_bench_201 import EDGES


@functools.singledispatch
def active_parameters(net: Any, params: Mapping[str, Any], mixture: Mixture) -> Any:
    """Which parameters of a supernet belong to what is active.

    Args:
      net: the supernet.
      params: its parameters.
      mixture: at which it is evaluated.

    Returns:
      A tree like the parameters; its leaves are bool arrays that broadcast to theirs. What no mixture weighs, such as
      the stem and the classifier, is active.

    Raises:
      TypeError: it is not a supernet.
    """
    raise TypeError(f"wants a supernet, not {type(net).__name__}")


@active_parameters.register
def _active_nas_bench_201(net: NASBench201Supernet, params: Mapping[str, Any], mixture: Mixture) -> Any:
    active = mixture.active
    places = {
        f"edge_{target}_{source}_{operation}": (edge, option)
        for edge, (target, source) in enumerate(EDGES)
        for option, operation in enumerate(net.space.operations)
    }

    def mask(path: tuple[Any, ...], _: jax.Array) -> jax.Array | bool:
        module = path[1].key if len(path) > 1 else ""
        return True if active is None or module not in places else active["cell"][places[module]]

    return jax.tree_util.tree_map_with_path(mask, params)
