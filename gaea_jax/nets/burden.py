"""How much the candidate operations of a space weigh, in parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax.nets.supernet import MixedCell, Mixture
from gaea_jax.spaces.nas_bench_201 import NASBench201

# Channels at which the released code of NASP counts.
CHANNELS = 12


@functools.singledispatch
def burdens(space: Any) -> dict[str, np.ndarray]:
    """The share that each candidate operation has in the parameters of all of them, at 12 channels.

    Args:
      space: the search space.

    Returns:
      For each choice of operations that counts its shares, float64 [options], of sum 1. In the DARTS family only the
      normal cell counts, as in the `NASP <https://arxiv.org/abs/1905.13577>`_ code.

    Raises:
      TypeError: there is no supernet for this kind of space.
    """
    raise TypeError(f"no supernet for a space of type {type(space).__name__}")


@burdens.register
def _burdens_nas_bench_201(space: NASBench201) -> dict[str, np.ndarray]:
    cell, x = MixedCell(space, jnp.float32), jnp.zeros((1, 4, 4, CHANNELS))
    mixture = Mixture({"cell": space.choices["cell"].uniform()})
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), x, mixture, False))["params"]
    return {"cell": shares([size(params.get(f"edge_1_0_{operation}", {})) for operation in space.operations])}


def size(params: Any) -> int:
    """Number of parameters in a tree of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shares(sizes: list[int]) -> np.ndarray:
    """Numbers divided by their sum; all 0 if they are."""
    return np.array(sizes) / max(sum(sizes), 1)
