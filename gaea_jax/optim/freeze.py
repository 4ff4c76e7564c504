"""An optimiser that lets what took no part in a step rest."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def freeze_inactive(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keeps parameters that are not active as they are, with all that the inner transform remembers of them.

    Where only a part of a network runs in a step, the gradient of the rest is 0, but weight decay and momentum would
    go on moving it. What is active comes to ``update`` as ``active``: a tree like the parameters, whose leaves are bool
    and broadcast to those of the parameters. Without it everything is active.

    Args:
      inner: any Optax transform.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`; it passes other extra arguments to the inner transform, which
      sees the gradients of all.

    Raises:
      ValueError: from ``update``, if ``active`` is not a tree like the parameters.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from gaea_jax import optim
      >>> solver = optim.freeze_inactive(optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0, 0.5)))
      >>> params = {"used": jnp.array([2.0]), "idle": jnp.array([2.0])}
      >>> grads = {"used": jnp.array([1.0]), "idle": jnp.array([0.0])}
      >>> state = solver.init(params)
      >>> active = {"used": True, "idle": False}
      >>> updates, state = solver.update(grads, state, params, active=active)
      >>> print(updates["used"], updates["idle"])
      [-2.] [0.]
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        active: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        moves, after = inner.update(updates, state, params, **extra_args)
        if active is None:
            return moves, after
        moves = jax.tree.map(lambda mask, move: jnp.where(mask, move, 0), active, moves)
        masks = optax.tree.map_params(inner, lambda _, mask: mask, after, active, transform_non_params=lambda _: True)
        return moves, jax.tree.map(jnp.where, masks, after, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)
