"""Variables for small networks, without compiling an initialisation."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn


@pytest.fixture(scope="session")
def draw() -> Callable[..., dict[str, Any]]:
    """``draw(net, *args)``: random variables for ``net.apply(variables, *args, train=...)``.

    BatchNorm's statistics, scales and offsets are not those of a fresh network, so that a test sees which are used.
    """

    def draw(net: nn.Module, *args: Any) -> dict[str, Any]:
        rng = np.random.default_rng(0)

        def leaf(path: tuple, of: jax.ShapeDtypeStruct) -> np.ndarray:
            name = path[-1].key.rstrip("_0123456789")
            if name in ("scale", "var"):
                value = rng.uniform(0.5, 1.5, of.shape)
            elif name == "kernel":
                value = rng.normal(size=of.shape) / np.sqrt(np.prod(of.shape[:-1]))
            else:
                value = 0.3 * rng.normal(size=of.shape)
            return value.astype(of.dtype)

        shapes = jax.eval_shape(lambda *args: net.init(jax.random.key(0), *args, train=False), *args)
        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw
