"""The step of a search: both blocks from one pass (joint), or one pass each (alternating)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax.data import OBJECTIVES
from gaea_jax.errors import UsageError
from gaea_jax.methods import Method
from gaea_jax.methods.base import PHASES, Arch, Memory, Space
from gaea_jax.nets import Mixture, active_parameters
from gaea_jax.train.state import SearchState

Metrics = dict[str, jax.Array]
Batch = dict[str, tuple[jax.Array, jax.Array]]
SearchStep = Callable[[SearchState, Batch], tuple[SearchState, Metrics]]

ORDERS = ("joint", "alternating")
HYPERGRADIENTS = ("exact", "finite-difference")

# Streams of random numbers that follow from the key of a run; those before are for its data.
_SAMPLES = 2
# Length of the step of the finite difference, as in DARTS, section 2.3.
_DIFFERENCE = 0.01


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of logits [B, classes] and integer labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of correct predictions in percent, of logits [B, classes] and integer labels [B]."""
    return 100 * jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def check_objective(objective: str, order: str, hypergradient: str) -> None:
    """Refuses what `make_search_step` cannot make a step of.

    Args:
      objective: see `make_search_step`.
      order: see `make_search_step`.
      hypergradient: see `make_search_step`.

    Raises:
      UsageError: one is unknown, or ``"joint"`` comes with a bilevel objective.
    """
    for argument, value, known in (
        ("objective", objective, OBJECTIVES),
        ("order", order, ORDERS),
        ("hypergradient", hypergradient, HYPERGRADIENTS),
    ):
        if value not in known:
            raise UsageError(argument, f"{value!r} is unknown; known are {', '.join(known)}")
    if order == "joint" and objective != "single-level":
        raise UsageError("order", f"'joint' has one batch for both gradients; {objective} needs 'alternating'")


def make_search_step(
    net: nn.Module,
    space: Space,
    method: Method,
    tx: optax.GradientTransformationExtraArgs,
    *,
    objective: str = "single-level",
    order: str = "joint",
    hypergradient: str = "exact",
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    warmup_steps: int = 0,
    masks: bool = False,
) -> SearchStep:
    """Makes the step of a search (GAEA, section 2; order of the reference in section 3.2).

    `joint` takes both gradients from one forward and backward pass over one batch. `alternating` is what the papers'
    code does: the architecture moves first, on a batch of its own, then the weights move on theirs and see the new
    architecture; BatchNorm's running statistics are updated by both passes.

    `single-level` and `bilevel` differ in where the architecture's batch comes from alone: training or held-out images.
    `bilevel-unrolled` is DARTS' second order: the architecture's gradient is that of the held-out loss *after* the step
    that the weights' optimiser would make on their batch, which depends on the architecture too. All of that optimiser
    counts: clip, decay, momentum and schedule.

    Args:
      net: a supernet of the space.
      space: the search space.
      method: relaxation, regulariser and derivation.
      tx: a `gaea_jax.optim.search_optimizer`, whose ``arch`` is usually ``method.optimizer(space)``.
      objective: ``"single-level"``, ``"bilevel"`` or ``"bilevel-unrolled"``.
      order: ``"joint"`` or, for all objectives, ``"alternating"``.
      hypergradient: how ``"bilevel-unrolled"`` takes the derivative through the weights' gradient: ``"exact"`` by
        differentiating it, ``"finite-difference"`` as DARTS approximates it (section 2.3, eq. 8).
      loss: ``loss(logits, labels)``, a scalar.
      masks: whether the optimiser of the weights is told, as ``active``, which of them take part in a step, where a
        method runs only some operations; `gaea_jax.optim.freeze_inactive` wants to know.
      warmup_steps: number of first steps in which the architecture does not move (nor its optimiser).

    Returns:
      ``step(state, batch) -> (state, metrics)``, pure and not yet compiled. ``batch`` is ``{"weights": (x, y)}``, and
      for ``"alternating"`` also ``"arch"``. Metrics are float32 scalars of the weights batch: ``loss`` in nats,
      ``accuracy`` in percent, ``gradient_norm`` of the weights before any clip; and if the method
      remembers which operations run, ``changed_edges``, on how many edges that has changed in the step.

    Raises:
      UsageError: unknown objective, order or hypergradient, or ``"joint"`` with a bilevel objective.
    """
    check_objective(objective, order, hypergradient)
    passes = make_passes(
        net,
        space,
        method,
        tx,
        objective=objective,
        hypergradient=hypergradient,
        loss=loss,
        warmup_steps=warmup_steps,
        masks=masks,
    )

    def step(state: SearchState, batch: Batch) -> tuple[SearchState, Metrics]:
        if order == "joint":
            state, metrics = passes.joint(state, batch)
        else:
            changed: Metrics = {}
            if jax.tree.leaves(state.params["arch"]):
                state, changed = passes.arch(state, batch)
            state, metrics = passes.weights(state, batch)
            metrics |= changed
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


class Passes(NamedTuple):
    """What steps are made of: each a function ``(state, batch) -> (state, metrics)`` that leaves the step as it is.

    Attributes:
      arch: moves the architecture by a gradient on ``batch["arch"]``.
      weights: moves the weights by one on ``batch["weights"]``.
      joint: moves both by one on ``batch["weights"]``.
    """

    arch: SearchStep
    weights: SearchStep
    joint: SearchStep


def make_passes(
    net: nn.Module,
    space: Space,
    method: Method,
    tx: optax.GradientTransformationExtraArgs,
    *,
    objective: str = "single-level",
    hypergradient: str = "exact",
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    warmup_steps: int = 0,
    masks: bool = False,
) -> Passes:
    """Makes the passes of a step, each with its forward and backward computation and its update.

    Args:
      net: as of `make_search_step`, which checks the names; so are the others.
      space: see there.
      method: see there.
      tx: see there.
      objective: see there.
      hypergradient: see there.
      loss: see there.
      warmup_steps: see there.
      masks: see there.

    Returns:
      The `Passes`.
    """

    def mixture_at(arch: Arch, state: SearchState, phase: str) -> Mixture:
        key = jax.random.fold_in(jax.random.fold_in(state.key, _SAMPLES), state.step)
        key = jax.random.fold_in(key, PHASES.index(phase))
        return method.mixture(space, arch, state.memory, key, state.step, phase)

    def objective_value(
        params: dict[str, Any], state: SearchState, batch: tuple[jax.Array, jax.Array], phase: str
    ) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
        x, y = batch
        mixture = mixture_at(params["arch"], state, phase)
        variables = {"params": params["weights"], **state.collections}
        logits, updated = net.apply(variables, x, mixture, train=True, mutable=list(state.collections))
        value = loss(logits, y)
        total = value + method.regularizer(space, params["arch"], mixture)
        return total, (dict(updated), {"loss": value, "accuracy": accuracy(logits, y)})

    def gradient(
        state: SearchState, batch: tuple[jax.Array, jax.Array], phase: str, *blocks: str
    ) -> tuple[Any, Any, Metrics]:
        """Gradients of the named blocks only: what is not asked for is not computed; the others are None."""

        def value(moving: dict[str, Any]) -> tuple[jax.Array, Any]:
            return objective_value({**state.params, **moving}, state, batch, phase)

        grads, (collections, metrics) = jax.grad(value, has_aux=True)({block: state.params[block] for block in blocks})
        return {"weights": None, "arch": None, **grads}, collections, metrics

    def through_weights(state: SearchState, batch: Batch) -> tuple[Any, Any]:
        """The architecture's gradient of the held-out loss after a step of the weights, which is not kept."""

        def training(weights: Any, arch: Any) -> jax.Array:
            return objective_value({"weights": weights, "arch": arch}, state, batch["weights"], "weights")[0]

        def after(gradient: Any) -> Any:
            grads = {"weights": gradient, "arch": None}
            updates, _ = update(state, grads, "weights", "weights")
            return optax.apply_updates(state.params["weights"], updates["weights"])

        def held_out(params: Any) -> tuple[jax.Array, Any]:
            return objective_value(params, state, batch["arch"], "arch")

        weights, arch = state.params["weights"], state.params["arch"]
        moved, pull_back = jax.vjp(after, jax.grad(training)(weights, arch))
        outer, (collections, _) = jax.grad(held_out, has_aux=True)({"weights": moved, "arch": arch})
        (direction,) = pull_back(outer["weights"])
        if hypergradient == "exact":
            # By the weights too, though that half is dropped before it is computed: a convolution that the architecture
            # does not reach has no forward-mode derivative.
            def gradient_of_arch(weights: Any) -> Any:
                return jax.grad(training, argnums=(0, 1))(weights, arch)[1]

            _, along = jax.jvp(gradient_of_arch, (weights,), (direction,))
        else:
            # The floor only keeps a direction of zero from dividing by it.
            length = _DIFFERENCE / jnp.maximum(optax.tree.norm(direction), jnp.finfo(jnp.float32).tiny)
            ahead, behind = (
                jax.grad(training, argnums=1)(optax.tree.add_scale(weights, sign * length, direction), arch)
                for sign in (1, -1)
            )
            along = jax.tree.map(lambda a, b: (a - b) / (2 * length), ahead, behind)
        return optax.tree.add(outer["arch"], along), collections

    def update(state: SearchState, grads: Any, block: str, phase: str) -> Any:
        told = {}
        if masks and block != "arch":
            mixture = mixture_at(state.params["arch"], state, phase)
            told["active"] = active_parameters(net, state.params["weights"], mixture)
        return tx.update(grads, state.opt_state, state.params, block=block, **told)

    def apply(state: SearchState, grads: Any, collections: Any, block: str, phase: str) -> SearchState:
        updates, opt_state = update(state, grads, block, phase)
        params = optax.apply_updates(state.params, updates)
        memory = (
            state.memory if block == "weights" else method.remember(space, params["arch"], state.memory, state.step)
        )
        return dataclasses.replace(state, params=params, collections=collections, opt_state=opt_state, memory=memory)

    def moves_arch(state: SearchState, move: Callable[[SearchState], SearchState], stay: Callable) -> SearchState:
        return jax.lax.cond(state.step < warmup_steps, stay, move, state) if warmup_steps else move(state)

    def arch(state: SearchState, batch: Batch) -> tuple[SearchState, Metrics]:
        def move(state: SearchState) -> SearchState:
            if objective == "bilevel-unrolled":
                grad, collections = through_weights(state, batch)
                grads = {"weights": None, "arch": grad}
            else:
                grads, collections, _ = gradient(state, batch["arch"], "arch", "arch")
            return apply(state, grads, collections, "arch", "arch")

        moved = moves_arch(state, move, lambda state: state)
        return moved, _changed(state.memory, moved.memory)

    def weights(state: SearchState, batch: Batch) -> tuple[SearchState, Metrics]:
        grads, collections, metrics = gradient(state, batch["weights"], "weights", "weights")
        state = apply(state, grads, collections, "weights", "weights")
        return state, {**metrics, "gradient_norm": optax.tree.norm(grads["weights"])}

    def joint(state: SearchState, batch: Batch) -> tuple[SearchState, Metrics]:
        grads, collections, metrics = gradient(state, batch["weights"], "joint", "weights", "arch")
        moved = moves_arch(
            state,
            lambda state: apply(state, grads, collections, "both", "joint"),
            lambda state: apply(state, grads, collections, "weights", "joint"),
        )
        metrics |= {"gradient_norm": optax.tree.norm(grads["weights"]), **_changed(state.memory, moved.memory)}
        return moved, metrics

    return Passes(arch, weights, joint)


def _changed(before: Memory, after: Memory) -> Metrics:
    """On how many edges what a method remembers has changed, if it remembers."""
    changed = [jnp.any(table != before[name], axis=-1) for name, table in after.items()]
    return {"changed_edges": jnp.sum(jnp.concatenate(changed), dtype=jnp.float32)} if changed else {}
