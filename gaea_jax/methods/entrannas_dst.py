"""EnTranNAS-DST: a learnt threshold for each node decides how many connections it keeps."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Evaluate, Memory, Method, Space, Tables, clipped
from gaea_jax.methods.darts import darts
from gaea_jax.methods.entrannas import heaviest, nodes_of_edges
from gaea_jax.methods.gaea import gaea
from gaea_jax.nets import Mixture
from gaea_jax.optim import exponentiated_gradient

NORMALISATIONS = ("edge", "node")
TRANSIT_WEIGHTS = ("one", "mixture")
PER_EDGE = ("several", "best")
THRESHOLDS = "_thresholds"


def entrannas_dst(
    learning_rate: optax.ScalarOrSchedule = 6e-4,
    *,
    temperature: optax.ScalarOrSchedule = 1.0,
    threshold: float = 0.5,
    normalise: str = "edge",
    transit_weight: str = "one",
    per_edge: str = "several",
    max_connections: int | None = None,
    sparsity_weight: float = 0.0,
    engine: str | tuple[int, ...] = "first",
    shared: bool = True,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    weight_decay: float = 1e-3,
) -> Method:
    """Differentiable sparsification: softmaxes of logits, and thresholds, all moved by Adam.

    A connection is an operation of an edge. Of each, the ratio of its weight to that of the node's heaviest is taken,
    less the node's threshold; what is not above 0 is not there. So a node has one connection or more, and what runs is
    what is derived: the engine cells weigh it by what is left, the transit cells by 1.

    Args:
      learning_rate: step of Adam (betas 0.5 and 0.999), a number or a schedule of the architecture step.
      temperature: of the softmax, a number or a schedule of the step. Less than 1 spreads the ratios, so that more
        connections fall below their threshold.
      threshold: where all thresholds start, above 0 and below 1; 1 / (1 + exp(-beta)) of what is learnt. They do not
        decay, which would pull them to 0.5. The paper's start is not known.
      normalise: what the weights of the engine cells sum to 1 over, ``"edge"`` or ``"node"``. Only with the former is a
        network with one operation an edge the same in engine and transit cells. Which the paper has is not known.
      transit_weight: what a connection weighs in transit cells, ``"one"``, or what the ``"mixture"`` of the engine
        cells has, without its gradient.
      per_edge: of several operations of an edge, the genotype has ``"several"`` or the ``"best"``.
      max_connections: the most that a node keeps, the heaviest; None is no limit.
      sparsity_weight: factor of the mean of 1 less the thresholds, which is added to the loss; the paper has none.
      engine: as for `entrannas`.
      shared: likewise.
      clip_norm: largest global norm of the architecture gradient, thresholds included, or None.
      entropy_weight: factor of the divergence of the softmax from uniform, in nats.
      weight_decay: L2 factor that is added to the gradient of the logits.

    Returns:
      The `Method`; ``arch`` are tables of logits as for `darts`, and for each such as ``normal`` the learnt thresholds
      of its nodes, ``normal_thresholds`` [nodes]. It remembers the connections. ``init`` raises UsageError on
      ``space``, if it has the operation ``none`` or its nodes do not choose their inputs.

    Raises:
      UsageError: an argument is unknown, or out of its range.

    References:
      Yang et al, `Towards Improving the Consistency, Efficiency, and Flexibility of Differentiable Neural Architecture
      Search <https://arxiv.org/abs/2101.11342>`_, 2021; the equations are 21 and 22 of the survey by `Heuillet et al
      <https://arxiv.org/abs/2304.05405>`_. What could not be read of them is a choice of ours.
    """
    method = darts(learning_rate, entropy_weight=entropy_weight, weight_decay=weight_decay)

    def log_weights(logits: jax.Array, step: jax.typing.ArrayLike) -> jax.Array:
        tau = temperature(step) if callable(temperature) else temperature
        return jax.nn.log_softmax(logits / tau)

    adam = optax.adam(learning_rate, b1=0.5)
    sparsity = Sparsity(threshold, normalise, transit_weight, per_edge, max_connections, sparsity_weight)
    return _sparse(method, log_weights, adam, sparsity, engine, shared, clip_norm)


def gaea_entrannas_dst(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    threshold_learning_rate: optax.ScalarOrSchedule = 6e-4,
    threshold: float = 0.5,
    normalise: str = "edge",
    transit_weight: str = "one",
    per_edge: str = "several",
    max_connections: int | None = None,
    sparsity_weight: float = 0.0,
    engine: str | tuple[int, ...] = "first",
    shared: bool = True,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    min_prob: float = 1e-5,
    clamp: Literal["shift-invariant", "release"] = "shift-invariant",
) -> Method:
    """EnTranNAS-DST in GAEA's geometry: points on the simplex moved by exponentiated gradient. Of no paper.

    Args:
      learning_rate: step of the exponentiated gradient, a number or a schedule of the architecture step.
      threshold_learning_rate: step of Adam, which moves the thresholds, likewise.
      threshold: as for `entrannas_dst`; so are the others, but those of `gaea`.
      normalise: see there.
      transit_weight: see there.
      per_edge: see there.
      max_connections: see there.
      sparsity_weight: see there.
      engine: see there.
      shared: see there.
      clip_norm: see there.
      entropy_weight: see there.
      min_prob: floor of a mixture weight, as for `gaea`.
      clamp: as for `gaea`.

    Returns:
      The `Method`; ``arch`` are points of the simplex as for `gaea`, and thresholds.

    Raises:
      UsageError: an argument is unknown, or out of its range.
    """
    method = gaea(entropy_weight=entropy_weight)
    # That of `gaea` is for its own tables; these have a simplex in each row.
    of_tables = exponentiated_gradient(learning_rate, min_prob=min_prob, clamp=clamp)
    method = method._replace(optimizer=lambda space: of_tables)

    def log_weights(point: jax.Array, step: jax.typing.ArrayLike) -> jax.Array:
        # Zero, which a point without a floor can reach, would give a gradient of NaN.
        return jnp.log(jnp.maximum(point, jnp.finfo(point.dtype).tiny))

    adam = optax.adam(threshold_learning_rate, b1=0.5)
    sparsity = Sparsity(threshold, normalise, transit_weight, per_edge, max_connections, sparsity_weight)
    return _sparse(method, log_weights, adam, sparsity, engine, shared, clip_norm)


class Sparsity(NamedTuple):
    """What the methods of this module have in common; see `entrannas_dst`.

    Attributes:
      threshold: where thresholds start.
      normalise: over what weights sum to 1.
      transit_weight: what a connection weighs in transit cells.
      per_edge: how many operations of an edge are derived.
      max_connections: the most that a node keeps.
      sparsity_weight: factor of what is added to the loss.
    """

    threshold: float
    normalise: str
    transit_weight: str
    per_edge: str
    max_connections: int | None
    sparsity_weight: float

    def check(self) -> None:
        """Raises UsageError on what cannot be."""
        for argument, value, known in (
            ("normalise", self.normalise, NORMALISATIONS),
            ("transit_weight", self.transit_weight, TRANSIT_WEIGHTS),
            ("per_edge", self.per_edge, PER_EDGE),
        ):
            if value not in known:
                raise UsageError(argument, f"{value!r} is unknown; known are {', '.join(known)}")
        if not 0 < self.threshold < 1:
            raise UsageError("threshold", f"must be above 0 and below 1, not {self.threshold}")
        if self.max_connections is not None and self.max_connections < 1:
            raise UsageError("max_connections", f"must be 1 or more, not {self.max_connections}")
        if not self.sparsity_weight >= 0:
            raise UsageError("sparsity_weight", f"must be 0 or more, not {self.sparsity_weight}")


def sparsified(
    log_weights: jax.Array,
    thresholds: jax.Array,
    nodes: Sequence[int],
    normalise: str = "edge",
    max_connections: int | None = None,
) -> jax.Array:
    """The weights of connections that differentiable sparsification leaves.

    Args:
      log_weights: logarithms of positive weights [edges, operations]; only their differences count.
      thresholds: of each node, above 0 and below 1, [nodes].
      nodes: of each edge the number of the node that it goes to; equal ones stand together.
      normalise: ``"edge"`` or ``"node"``, what sums to 1.
      max_connections: the most that a node keeps; None is no limit.

    Returns:
      [edges, operations], 0 for what is not there; one or more of each node are. Differentiable, also through the
      maximum of a node.

    References:
      Equations 21 and 22 of `Heuillet et al <https://arxiv.org/abs/2304.05405>`_.

    Example:
      >>> table = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]))
      >>> print(np.asarray(sparsified(table, jnp.array([0.45]), (0, 0)), float).round(2))
      [[0.88 0.12 0.  ]
       [0.   0.92 0.08]]
    """
    numbers = np.asarray(nodes)
    rows = [np.flatnonzero(numbers == node) for node in dict.fromkeys(nodes)]
    largest = jnp.stack([jnp.max(log_weights[row]) for row in rows])[numbers]
    # The largest stays, though its threshold has been rounded to 1.
    least = jnp.minimum(thresholds, 1 - jnp.finfo(thresholds.dtype).eps)[numbers]
    left = jax.nn.relu(jnp.exp(log_weights - largest[:, None]) - least[:, None])
    if max_connections is not None:
        left = jnp.where(heaviest(left, nodes, max_connections), left, 0)
    totals = left.sum(axis=1)
    if normalise == "node":
        totals = jnp.stack([totals[row].sum() for row in rows])[numbers]
    # An edge without connections divides by 1, so that its gradient is finite.
    return left / jnp.where(totals > 0, totals, 1)[:, None]


def _sparse(
    method: Method,
    log_weights: Callable[[jax.Array, jax.typing.ArrayLike], jax.Array],
    of_thresholds: optax.GradientTransformation,
    sparsity: Sparsity,
    engine: str | tuple[int, ...],
    shared: bool,
    clip_norm: float | None,
) -> Method:
    """A method whose mixture is sparsified, and which only the engine cells read."""
    sparsity.check()

    def init(space: Space, key: jax.Array) -> Arch:
        beta = np.log(sparsity.threshold / (1 - sparsity.threshold))
        thresholds = {
            name + THRESHOLDS: jnp.full(len(set(of)), beta, float) for name, of in nodes_of_edges(space).items()
        }
        return {**method.init(space, key), **thresholds}

    def tables(arch: Arch) -> Tables:
        return {name: table for name, table in arch.items() if not name.endswith(THRESHOLDS)}

    def mixed(space: Space, arch: Arch, step: jax.typing.ArrayLike) -> Tables:
        return {
            name: sparsified(
                log_weights(arch[name], step),
                jax.nn.sigmoid(arch[name + THRESHOLDS]),
                nodes,
                sparsity.normalise,
                sparsity.max_connections,
            )
            for name, nodes in nodes_of_edges(space).items()
        }

    def remember(space: Space, arch: Arch, memory: Memory, step: jax.typing.ArrayLike) -> Memory:
        return {name: table > 0 for name, table in mixed(space, arch, step).items()}

    def mixture(
        space: Space, arch: Arch, memory: Memory, key: jax.Array, step: jax.typing.ArrayLike, phase: str
    ) -> Mixture:
        point = mixed(space, arch, step)
        transit = Mixture.derived(memory)
        if sparsity.transit_weight == "mixture":
            transit = Mixture({name: jax.lax.stop_gradient(table) for name, table in point.items()}, memory)
        return Mixture(point, {name: table > 0 for name, table in point.items()}, transit=transit)

    def regularizer(space: Space, arch: Arch, mixture: Mixture) -> jax.Array:
        beta = jnp.concatenate([arch[name + THRESHOLDS] for name in nodes_of_edges(space)])
        return method.regularizer(space, tables(arch), mixture) + sparsity.sparsity_weight * jnp.mean(
            1 - jax.nn.sigmoid(beta)
        )

    def optimizer(space: Space) -> optax.GradientTransformationExtraArgs:
        def labels(arch: Arch) -> dict[str, str]:
            return {name: "thresholds" if name.endswith(THRESHOLDS) else "tables" for name in arch}

        both = optax.partition({"tables": method.optimizer(space), "thresholds": of_thresholds}, labels)
        return clipped(both, clip_norm)

    def derive(space: Space, arch: Arch, memory: Memory, key: jax.Array, evaluate: Evaluate | None) -> object:
        if sparsity.per_edge == "several":
            return space.decode(memory)
        scores = {name: jnp.where(memory[name], table, -jnp.inf) for name, table in weights(space, arch).items()}
        best = {
            name: jnp.argmax(table, axis=1)[:, None] == jnp.arange(table.shape[1]) for name, table in scores.items()
        }
        return space.decode({name: table & memory[name] for name, table in best.items()})

    def weights(space: Space, arch: Arch) -> Tables:
        return method.weights(space, tables(arch))

    def measures(space: Space, arch: Arch, memory: Memory, step: jax.typing.ArrayLike) -> dict[str, Any]:
        point = mixed(space, arch, step)
        gaps = [jnp.max(jnp.where(table > 0, jnp.abs(table - 1), 0)) for table in point.values()]
        nodes = nodes_of_edges(space)
        rows = {name: table.sum(axis=1) for name, table in memory.items()}
        return {
            "connections": {
                name: jnp.bincount(np.array(of), rows[name], length=max(of) + 1) for name, of in nodes.items()
            },
            "thresholds": {name: jax.nn.sigmoid(arch[name + THRESHOLDS]) for name in point},
            "equivalence_gap": jnp.max(jnp.stack(gaps)),
        }

    return Method(
        init=init,
        weights=weights,
        mixture=mixture,
        regularizer=regularizer,
        optimizer=optimizer,
        derive=derive,
        remember=remember,
        measures=measures,
        net=MappingProxyType({"engine": engine, "shared": shared}),
    )
