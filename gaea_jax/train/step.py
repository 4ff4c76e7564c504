"""The compiled step of a search: both blocks from one pass (joint), or one pass each (alternating)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax.errors import UsageError
from gaea_jax.methods import Method
from gaea_jax.methods.base import Space
from gaea_jax.train.state import SearchState

Metrics = dict[str, jax.Array]
Batch = dict[str, tuple[jax.Array, jax.Array]]
SearchStep = Callable[[SearchState, Batch], tuple[SearchState, Metrics]]

OBJECTIVES = ("single-level",)
ORDERS = ("joint", "alternating")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of logits [B, classes] and integer labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of correct predictions in percent, of logits [B, classes] and integer labels [B]."""
    return 100 * jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def make_search_step(
    net: nn.Module,
    space: Space,
    method: Method,
    tx: optax.GradientTransformationExtraArgs,
    *,
    objective: str = "single-level",
    order: str = "joint",
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    warmup_steps: int = 0,
) -> SearchStep:
    """Makes the step of a single-level search (GAEA, section 2.2; order of the reference in section 3.2).

    `joint` takes both gradients from one forward and backward pass over one batch. `alternating` is what the papers'
    code does: the architecture moves first, on a batch of its own, then the weights move on theirs and see the new
    architecture; BatchNorm's running statistics are updated by both passes.

    Args:
      net: a supernet of the space.
      space: the search space.
      method: relaxation, regulariser and derivation.
      tx: a `gaea_jax.optim.search_optimizer`, whose ``arch`` is usually ``method.optimizer``.
      objective: ``"single-level"``: both blocks minimise the loss on training data.
      order: ``"joint"`` or ``"alternating"``.
      loss: ``loss(logits, labels)``, a scalar.
      warmup_steps: number of first steps in which the architecture does not move (nor its optimiser).

    Returns:
      ``step(state, batch) -> (state, metrics)``, pure and not yet compiled. ``batch`` is ``{"weights": (x, y)}``, and
      for ``"alternating"`` also ``"arch"``. Metrics are float32 scalars of the weights batch: ``loss`` in nats,
      ``accuracy`` in percent, ``gradient_norm`` of the weights before any clip.

    Raises:
      UsageError: unknown objective or order.
    """
    if objective not in OBJECTIVES:
        raise UsageError("objective", f"{objective!r} is unknown; known is {', '.join(OBJECTIVES)}")
    if order not in ORDERS:
        raise UsageError("order", f"{order!r} is unknown; known are {', '.join(ORDERS)}")

    def objective_value(
        params: dict[str, Any], collections: dict[str, Any], batch: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
        x, y = batch
        mixture = method.mixture(space, params["arch"])
        variables = {"params": params["weights"], **collections}
        logits, updated = net.apply(variables, x, mixture, train=True, mutable=list(collections))
        value = loss(logits, y)
        total = value + method.regularizer(space, params["arch"], mixture)
        return total, (dict(updated), {"loss": value, "accuracy": accuracy(logits, y)})

    def gradient(state: SearchState, batch: tuple[jax.Array, jax.Array], *blocks: str) -> tuple[Any, Any, Metrics]:
        """Gradients of the named blocks only: what is not asked for is not computed; the others are None."""

        def value(moving: dict[str, Any]) -> tuple[jax.Array, Any]:
            return objective_value({**state.params, **moving}, state.collections, batch)

        grads, (collections, metrics) = jax.grad(value, has_aux=True)({block: state.params[block] for block in blocks})
        return {"weights": None, "arch": None, **grads}, collections, metrics

    def apply(state: SearchState, grads: Any, collections: Any, block: str) -> SearchState:
        updates, opt_state = tx.update(grads, state.opt_state, state.params, block=block)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, params=params, collections=collections, opt_state=opt_state)

    def moves_arch(state: SearchState, move: Callable[[SearchState], SearchState], stay: Callable) -> SearchState:
        return jax.lax.cond(state.step < warmup_steps, stay, move, state) if warmup_steps else move(state)

    def joint(state: SearchState, batch: Batch) -> tuple[SearchState, Metrics]:
        grads, collections, metrics = gradient(state, batch["weights"], "weights", "arch")
        state = moves_arch(
            state,
            lambda state: apply(state, grads, collections, "both"),
            lambda state: apply(state, grads, collections, "weights"),
        )
        return finish(state, grads, metrics)

    def alternating(state: SearchState, batch: Batch) -> tuple[SearchState, Metrics]:
        def move(state: SearchState) -> SearchState:
            grads, collections, _ = gradient(state, batch["arch"], "arch")
            return apply(state, grads, collections, "arch")

        state = moves_arch(state, move, lambda state: state)
        grads, collections, metrics = gradient(state, batch["weights"], "weights")
        return finish(apply(state, grads, collections, "weights"), grads, metrics)

    def finish(state: SearchState, grads: Any, metrics: Metrics) -> tuple[SearchState, Metrics]:
        metrics["gradient_norm"] = optax.tree.norm(grads["weights"])
        return dataclasses.replace(state, step=state.step + 1), metrics

    return joint if order == "joint" else alternating
