"""Everything a search carries from one step to the next, as one pytree."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax.methods import Method
from gaea_jax.methods.base import Memory, Space

State = TypeVar("State")


@flax.struct.dataclass
class SearchState:
    """State of a search.

    Attributes:
      step: int32 scalar, number of completed steps.
      params: ``{"weights": Flax parameters, "arch": architecture parameters}``, all float32.
      collections: the supernet's other collections (``batch_stats``).
      opt_state: state of the `gaea_jax.optim.search_optimizer`.
      memory: what the method remembers of the steps before, bool tables by name.
      key: random key of the run; the order of the images and their augmentation follow from it and the step.
    """

    step: jax.Array
    params: dict[str, Any]
    collections: dict[str, Any]
    opt_state: optax.OptState
    memory: Memory
    key: jax.Array

    @classmethod
    def create(
        cls,
        net: nn.Module,
        space: Space,
        method: Method,
        tx: optax.GradientTransformationExtraArgs,
        image_shape: tuple[int, ...],
        key: jax.Array,
    ) -> Self:
        """The state before the first step; pure, so that ``jit`` and ``eval_shape`` can be applied to it.

        Args:
          net: a supernet of the space.
          space: the search space.
          method: the search method.
          tx: transform over ``{"weights": ..., "arch": ...}``.
          image_shape: (H, W, channels) of an image.
          key: random key of the run.

        Returns:
          The state, with ``step`` 0.
        """
        weights_key, arch_key, _ = jax.random.split(key, 3)
        arch = method.init(space, arch_key)
        memory = method.remember(space, arch, {}, 0)
        x = jnp.zeros((1, *image_shape), jnp.float32)
        mixture = method.mixture(space, arch, memory, run_key(key), 0, "eval")
        collections = dict(net.init(weights_key, x, mixture, train=False))
        params = {"weights": collections.pop("params"), "arch": arch}
        return cls(jnp.zeros((), jnp.int32), params, collections, tx.init(params), memory, run_key(key))


def at_rates(state: SearchState, rates: Mapping[str, jax.typing.ArrayLike]) -> SearchState:
    """The state of a search at other learning rates, which are values in the state of its optimisers.

    Args:
      state: the state.
      rates: scalars; ``learning_rate``, the peak of the weights' schedule, or ``arch_learning_rate``, or both.

    Returns:
      The state.

    Raises:
      KeyError: it has no such rate.
    """
    arrays = {name: jnp.asarray(rate, jnp.float32) for name, rate in rates.items()}
    return dataclasses.replace(state, opt_state=optax.tree.set(state.opt_state, **arrays))


def run_key(key: jax.Array) -> jax.Array:
    """The key that a `SearchState` created from `key` carries, for the data, the steps and the derivations."""
    return jax.random.split(key, 3)[2]


def compiled_once(create: Callable[[jax.Array], State]) -> Callable[[jax.Array], State]:
    """Compiles a function that draws an initial state, which runs once: without optimising its program.

    The random bits of every kernel are a sub-program of their own, so that XLA would spend three times as long on
    optimising the program as on all the rest. The values are the same bits.

    Args:
      create: from a random key to the state; pure.

    Returns:
      The compiled function.
    """
    # Compilers of other platforms have other options.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(create, compiler_options=options)
