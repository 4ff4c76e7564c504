"""EnTranNAS: few engine cells have the whole mixture; the others, transit cells, run the cell derived so far."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Evaluate, Memory, Method, Space, Tables, learnt, learnt_operations
from gaea_jax.methods.darts import darts
from gaea_jax.methods.gaea import gaea
from gaea_jax.nets import Mixture

SELECTIONS = ("edges", "connections")


def entrannas(
    learning_rate: optax.ScalarOrSchedule = 6e-4,
    *,
    temperature: optax.ScalarOrSchedule = 1.0,
    engine: str | tuple[int, ...] = "first",
    shared: bool = True,
    selection: str = "edges",
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    weight_decay: float = 1e-3,
) -> Method:
    """Engine and transit cells: softmaxes of logits, moved by Adam.

    The engine cells mix all operations, as in DARTS, and give the architecture its gradient. The transit cells run what
    would be derived at that step, each operation with weight 1, as the final network does: they cost as much as its
    cells, and pass on what it would. What they run is derived again whenever the architecture has moved.

    Args:
      learning_rate: step of Adam (betas 0.5 and 0.999), a number or a schedule of the architecture step.
      temperature: of the softmax in the engine cells, a number or a schedule of the step. What is derived does not
        depend on it: the softmaxes of an edge's logits are compared between edges at temperature 1.
      engine: which cells are engine cells, see `gaea_jax.nets.supernet`. The paper's placement is not known; one of
        either kind is enough, its authors say.
      shared: whether the edges that leave a node share the features of an operation in a cell.
      selection: what is derived: the ``"edges"`` with the heaviest operations, two a node, as DARTS does, or the two
        heaviest ``"connections"`` of a node, which may be operations of the same edge. Which the paper has is not
        known.
      clip_norm: largest global norm of the architecture gradient, or None.
      entropy_weight: factor of the divergence from the uniform mixture, in nats.
      weight_decay: L2 factor that is added to the gradient of the logits.

    Returns:
      The `Method`; ``arch`` are tables of logits as for `darts`; it remembers what is derived. With ``"connections"``,
      ``remember`` raises UsageError on ``space``, see `nodes_of_edges`.

    Raises:
      UsageError: ``selection`` is unknown.

    References:
      Yang et al, `Towards Improving the Consistency, Efficiency, and Flexibility of Differentiable Neural Architecture
      Search <https://arxiv.org/abs/2101.11342>`_, 2021. What could not be read of it is a choice of ours.
    """
    method = darts(learning_rate, clip_norm=clip_norm, entropy_weight=entropy_weight, weight_decay=weight_decay)

    def mixed(arch: Arch, step: jax.typing.ArrayLike) -> Tables:
        tau = temperature(step) if callable(temperature) else temperature
        return {name: jax.nn.softmax(logits / tau) for name, logits in arch.items()}

    return _with_transit(method, mixed, engine, shared, selection)


def gaea_entrannas(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    engine: str | tuple[int, ...] = "first",
    shared: bool = True,
    selection: str = "edges",
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    min_prob: float = 1e-5,
    clamp: Literal["shift-invariant", "release"] = "shift-invariant",
) -> Method:
    """EnTranNAS in GAEA's geometry: points on the simplex moved by exponentiated gradient. Of no paper.

    Args:
      learning_rate: step of the exponentiated gradient, a number or a schedule of the architecture step.
      engine: as for `entrannas`.
      shared: likewise.
      selection: likewise.
      clip_norm: largest global norm of the architecture gradient, or None.
      entropy_weight: factor of the divergence from the uniform mixture, in nats.
      min_prob: floor of a mixture weight, as for `gaea`.
      clamp: as for `gaea`.

    Returns:
      The `Method`; ``arch`` are points of the simplex as for `gaea`; the rest is as for `entrannas`.

    Raises:
      UsageError: ``selection`` is unknown.
    """
    method = gaea(learning_rate, clip_norm=clip_norm, entropy_weight=entropy_weight, min_prob=min_prob, clamp=clamp)
    return _with_transit(method, lambda arch, step: arch, engine, shared, selection)


def _with_transit(
    method: Method,
    mixed: Callable[[Arch, jax.typing.ArrayLike], Tables],
    engine: str | tuple[int, ...],
    shared: bool,
    selection: str,
) -> Method:
    """A method whose mixture only the engine cells read."""
    if selection not in SELECTIONS:
        raise UsageError("selection", f"{selection!r} is unknown; known are {', '.join(SELECTIONS)}")

    def init(space: Space, key: jax.Array) -> Arch:
        learnt_operations(space)
        return method.init(space, key)

    def remember(space: Space, arch: Arch, memory: Memory, step: jax.typing.ArrayLike) -> Memory:
        weights = method.weights(space, arch)
        if selection == "edges":
            return space.select(weights)
        return {name: heaviest(weights[name], nodes, 2) for name, nodes in nodes_of_edges(space).items()}

    def mixture(
        space: Space, arch: Arch, memory: Memory, key: jax.Array, step: jax.typing.ArrayLike, phase: str
    ) -> Mixture:
        return Mixture(mixed(arch, step), transit=Mixture.derived(memory))

    def derive(space: Space, arch: Arch, memory: Memory, key: jax.Array, evaluate: Evaluate | None) -> object:
        return space.decode(memory)

    net = MappingProxyType({"engine": engine, "shared": shared})
    return method._replace(init=init, mixture=mixture, derive=derive, remember=remember, net=net)


def nodes_of_edges(space: Space) -> dict[str, tuple[int, ...]]:
    """For each choice of operations, the number of the node that each of its edges goes to.

    Args:
      space: the search space.

    Returns:
      The numbers by name of the choice.

    Raises:
      UsageError: on ``space``, if its cells do not choose the inputs of nodes, or have the operation ``none``, beside
        which a connection cannot be left out.
    """
    inputs = learnt(space, optional=True).values()
    found = {choice.weighs: choice.segments for choice in inputs if choice.weighs and choice.segments}
    if not found:
        raise UsageError("space", f"{space.name} does not choose the edges into a node, which the method counts")
    if any("none" in space.choices[name].options for name in found):
        raise UsageError("space", f"{space.name} has the operation none; use its variant without")
    return found


def heaviest(weights: jax.Array, nodes: Sequence[int], count: int) -> jax.Array:
    """The heaviest operations of all edges into a node.

    Args:
      weights: [edges, operations].
      nodes: of each edge the number of the node that it goes to.
      count: how many of a node; all that it has, if these are fewer.

    Returns:
      Bool [edges, operations]. Of equal weights, those of earlier edges and operations are kept.
    """
    segments = np.repeat(nodes, weights.shape[-1])
    return simplex.largest(jnp.ravel(weights), count, segments=segments).reshape(weights.shape)
