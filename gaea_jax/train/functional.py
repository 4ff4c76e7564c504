"""A search as a pure function of its random key, which can be compiled, mapped over keys and rates, and composed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Tables
from gaea_jax.train.prepare import prepare
from gaea_jax.train.search_config import SearchConfig
from gaea_jax.train.state import SearchState, at_rates


class Searched(NamedTuple):
    """What a search found.

    Attributes:
      state: the state after the last step.
      weights: what every option weighs then; `gaea_jax.spaces.derive` makes a genotype of them.
      metrics: those of each step (see `make_search_step`), float32 [steps].
    """

    state: SearchState
    weights: Tables
    metrics: dict[str, jax.Array]


def make_search(config: SearchConfig) -> Callable[..., Searched]:
    """Makes a whole search a pure function, all its steps in one compiled loop.

    It makes the steps that `search` makes with ``loop="scan"``, without reports, checkpoints or derivations on the way.

    Args:
      config: what and how; ``seed`` is not used, nor is what reports have.

    Returns:
      ``search(key, rates=None)`` to `Searched`, not compiled. ``jax.random.key(seed)`` makes the search of that seed;
      ``rates`` may have ``learning_rate`` and ``arch_learning_rate``, scalars in place of those of the configuration.
      It is a pytree that holds the images: hand it to what you compile as an argument, or they become constants of the
      program. Map it by ``jax.lax.map``, or ``jax.vmap`` where many small operations suit the device.

    Raises:
      UsageError: an argument is wrong, or one of ``out``, ``stream`` and ``table``, which are for `search`, is given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gaea_jax.train import SearchConfig, make_search
      >>> search = make_search(SearchConfig(steps=2, channels=2, cells=1, batch_size=4))
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> found = jax.jit(jax.lax.map)(search, keys)
      >>> found.weights["cell"].shape, found.metrics["loss"].shape
      ((3, 6, 4), (3, 2))
    """
    for name in ("out", "stream", "table"):
        if getattr(config, name):
            raise UsageError(name, "is for a search that reports; a pure function has no use for it")
    ready = prepare(config, jax.local_devices()[:1])

    def search(images: Any, key: jax.Array, rates: Mapping[str, jax.typing.ArrayLike] | None = None) -> Searched:
        source = ready.source(images, key)

        def advance(state: SearchState, _: None) -> tuple[SearchState, dict[str, jax.Array]]:
            return ready.step(state, source(state.step))

        state, metrics = jax.lax.scan(advance, at_rates(ready.create(key), rates or {}), length=ready.length.until)
        return Searched(state, ready.method.weights(ready.space, state.params["arch"]), metrics)

    return Partial(search, ready.images)
