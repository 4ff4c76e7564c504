"""What a search method is: a relaxation of the discrete choice and an optimiser that fits its geometry."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture
from gaea_jax.spaces import SearchSpace, derive
from gaea_jax.spaces.base import Choice

Space = SearchSpace[Any]
Arch = dict[str, jax.Array]
Tables = dict[str, jax.Array]
Memory = dict[str, jax.Array]
Evaluate = Callable[[Any], float]

PHASES = ("weights", "arch", "joint", "eval")


class Method(NamedTuple):
    """A search method as a record of pure functions.

    Attributes:
      init: ``(space, key) -> arch``, the architecture parameters, float32 (float64 under x64): for each choice of the
        space that is learnt one array of its shape. An optional choice need not be learnt, and a method that learns
        none has no parameters.
      weights: ``(space, arch) -> tables``, what every option weighs: for each learnt choice, or for each that is not
        optional if none is learnt, a table whose rows or segments are points of the simplex. Reports show it, and
        larger means preferred.
      mixture: ``(space, arch, memory, key, step, phase) -> Mixture``, at which the supernet is evaluated;
        differentiable in ``arch``. ``memory`` is what ``remember`` returned last. ``key`` is for what is sampled,
        ``step`` (int32 scalar, completed steps) for schedules. ``phase``, one of `PHASES`, says which gradient is to be
        taken there: that of the weights, of the architecture or of both (``"joint"``), or none (``"eval"``: the network
        that stands for ``arch``, nothing sampled).
      regularizer: ``(space, arch, mixture) -> scalar`` that is added to the loss, in nats.
      optimizer: ``space -> transform`` over ``arch``; which entries of a flat table make a simplex, the space says.
      derive: ``(space, arch, memory, key, evaluate) -> genotype``, on the host. ``evaluate`` maps a genotype to its
        accuracy in percent with the supernet's weights on held-out images, or is None where there are none.
      remember: ``(space, arch, memory, step) -> memory``, called at the start, with an empty memory, and whenever the
        architecture has moved: bool tables by name, such as which operations run. A method that remembers nothing
        returns what it gets.
      measures: ``(space, arch, memory, step) -> tree`` of arrays by name that a report shows beside the weights.
      net: options that `gaea_jax.nets.supernet` needs for this method, such as ``{"partial": 4}``; read-only.
    """

    init: Callable[[Space, jax.Array], Arch]
    weights: Callable[[Space, Arch], Tables]
    mixture: Callable[[Space, Arch, Memory, jax.Array, jax.typing.ArrayLike, str], Mixture]
    regularizer: Callable[[Space, Arch, Mixture], jax.Array]
    optimizer: Callable[[Space], optax.GradientTransformationExtraArgs]
    derive: Callable[[Space, Arch, Memory, jax.Array, Evaluate | None], Any]
    remember: Callable[[Space, Arch, Memory, jax.typing.ArrayLike], Memory] = lambda space, arch, memory, step: memory
    measures: Callable[[Space, Arch, Memory, jax.typing.ArrayLike], dict[str, Any]] = lambda *_: {}
    net: Mapping[str, Any] = MappingProxyType({})


def learnt(space: Space, *, optional: bool = False) -> dict[str, Choice]:
    """The choices that a method learns.

    Args:
      space: the search space.
      optional: whether those that weights may lack are learnt too, such as the weights of edges. Inputs that weights
        may not lack are learnt with or without.

    Returns:
      The choices by name, in the order of the space.

    Raises:
      UsageError: on ``space``, if ``optional`` and nothing but operations is chosen.
    """
    if optional and all(choice.kind == "op" for choice in space.choices.values()):
        raise UsageError("space", f"{space.name} has no weights of edges, which the method learns")
    return {name: choice for name, choice in space.choices.items() if optional or not choice.optional}


def learnt_operations(space: Space) -> dict[str, Choice]:
    """The choices of a method that takes one operation at a time, and nothing else.

    Args:
      space: the search space.

    Returns:
      What `learnt` returns.

    Raises:
      UsageError: on ``space``, if something else than operations has to be chosen.
    """
    choices = learnt(space)
    if others := [name for name, choice in choices.items() if choice.kind != "op"]:
        sentence = f"lets nodes read several others ({', '.join(others)}); the method takes one option at a time"
        raise UsageError("space", f"{space.name} {sentence}")
    return choices


def derive_heaviest(
    weights: Callable[[Space, Arch], Tables],
) -> Callable[[Space, Arch, Memory, jax.Array, Evaluate | None], Any]:
    """The derivation of `Method` that keeps the heaviest options, by the rule of the space.

    Args:
      weights: as in `Method`.

    Returns:
      ``(space, arch, memory, key, evaluate) -> genotype``, which needs none of the last three.
    """
    return lambda space, arch, memory, key, evaluate: derive(space, weights(space, arch))


def entropic_regularizer(
    factor: float, weights: Callable[[Space, Arch], Tables]
) -> Callable[[Space, Arch, Mixture], jax.Array]:
    """The divergence of the weights from the uniform ones, summed over edges: it pulls *towards* uniform.

    Only operations count, not the weights of edges. The released GAEA code calls the factor ``arch_weight_decay``.

    Args:
      factor: 0 for none.
      weights: as in `Method`.

    Returns:
      A regulariser for `Method`, in nats.
    """

    def regularizer(space: Space, arch: Arch, mixture: Mixture) -> jax.Array:
        tables = [table for name, table in weights(space, arch).items() if space.choices[name].kind == "op"]
        divergences = [simplex.kl(table, simplex.uniform_like(table)).sum() for table in tables]
        return factor * jnp.sum(jnp.stack(divergences))

    return regularizer


def clipped(optimizer: optax.GradientTransformation, norm: float | None) -> optax.GradientTransformationExtraArgs:
    """An optimiser behind a clip of the global norm of its gradient.

    Args:
      optimizer: transform over the architecture.
      norm: largest norm, or None for no clip.

    Returns:
      The transform.
    """
    if norm is None:
        return optax.with_extra_args_support(optimizer)
    return optax.chain(optax.clip_by_global_norm(norm), optimizer)
