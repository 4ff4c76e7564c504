"""Which weights of a supernet take part in a step in which only some operations run."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from gaea_jax.spaces.nas_bench_201 import EDGES, NASBench201


@functools.singledispatch
def active_parameters(space: Any, params: Mapping[str, Any], active: Mapping[str, jax.Array]) -> Any:
    """Which parameters of a supernet belong to what is active.

    Args:
      space: the search space.
      params: parameters of a supernet of that space.
      active: bool tables, as `Mixture` has them.

    Returns:
      A tree like the parameters; its leaves are bool arrays that broadcast to theirs. What no mixture weighs, such as
      the stem and the classifier, is active.

    Raises:
      TypeError: there is no supernet for this kind of space.
    """
    raise TypeError(f"no supernet for a space of type {type(space).__name__}")


@active_parameters.register
def _active_nas_bench_201(space: NASBench201, params: Mapping[str, Any], active: Mapping[str, jax.Array]) -> Any:
    places = {
        f"edge_{target}_{source}_{operation}": (edge, option)
        for edge, (target, source) in enumerate(EDGES)
        for option, operation in enumerate(space.operations)
    }

    def mask(path: tuple[Any, ...], _: jax.Array) -> jax.Array | bool:
        module = path[1].key if len(path) > 1 else ""
        return active["cell"][places[module]] if module in places else True

    return jax.tree_util.tree_map_with_path(mask, params)
