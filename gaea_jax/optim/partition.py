"""One optimiser for the two blocks of a search: the shared weights and the architecture."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

_BLOCKS = ("both", "weights", "arch")


class SearchOptimizerState(NamedTuple):
    """State of :func:`search_optimizer`: one inner state a block.

    Attributes:
      weights: state of the optimiser of the shared weights.
      arch: state of the optimiser of the architecture.
    """

    weights: optax.OptState
    arch: optax.OptState


def search_optimizer(
    *, weights: optax.GradientTransformation, arch: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Gives the weights and the architecture an optimiser each, and lets a step move one block alone.

    The parameters are ``{"weights": ..., "arch": ...}``. ``update`` takes ``block``, a Python string:

    - ``"both"`` (default): both blocks move, as in a joint single-level step.
    - ``"weights"`` or ``"arch"``: that block moves. The other gets zero updates and its state comes back
      as it was, the same objects: no weight decay, no momentum, no tick of a schedule. Its gradient may be
      None, so that it need not be computed.

    Clip inside a block (``weights=optax.chain(optax.clip_by_global_norm(5.0), ...)``): a clip around the
    whole would mix the norms of the two.

    Args:
      weights: transform for ``params["weights"]``.
      arch: transform for ``params["arch"]``.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose ``update`` needs ``params`` and passes other
      extra arguments to the transforms that move.

    Raises:
      ValueError: parameters or gradients that are not ``{"weights": ..., "arch": ...}``, an unknown
        ``block``, a missing gradient of a block that is to move, or ``update`` without ``params``.

    Examples:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from gaea_jax import optim
      >>> solver = optim.search_optimizer(weights=optax.sgd(0.1), arch=optim.exponentiated_gradient(1.0))
      >>> params = {"weights": jnp.array([1.0, 2.0]), "arch": jnp.array([0.5, 0.5])}
      >>> state = solver.init(params)
      >>> grads = {"weights": None, "arch": jnp.array([1.0, 0.0])}
      >>> updates, state = solver.update(grads, state, params, block="arch")
      >>> params = optax.apply_updates(params, updates)
      >>> print(params["weights"], np.asarray(params["arch"]).round(4))
      [1. 2.] [0.2689 0.7311]

    References:
      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, algorithm 1
    """
    inner = {
        "weights": optax.with_extra_args_support(weights),
        "arch": optax.with_extra_args_support(arch),
    }

    def init(params: optax.Params) -> SearchOptimizerState:
        parts = _parts("params", params)
        return SearchOptimizerState(**{name: inner[name].init(parts[name]) for name in inner})

    def update(
        updates: optax.Updates,
        state: SearchOptimizerState,
        params: optax.Params | None = None,
        *,
        block: str = "both",
        **extra_args: Any,
    ) -> tuple[optax.Updates, SearchOptimizerState]:
        if params is None:
            raise ValueError("search optimizer: update needs the parameters; call update(grads, state, params).")
        if block not in _BLOCKS:
            raise ValueError(f"search optimizer: block must be one of {_BLOCKS}, got {block!r}.")
        gradients, parts = _parts("gradients", updates), _parts("params", params)
        moves, states = {}, {}
        for name in inner:
            part_state = getattr(state, name)
            if block not in ("both", name):
                moves[name], states[name] = optax.tree.zeros_like(parts[name]), part_state
                continue
            if gradients[name] is None:
                raise ValueError(f"search optimizer: block={block!r} moves {name}, whose gradient is None.")
            moves[name], states[name] = inner[name].update(gradients[name], part_state, parts[name], **extra_args)
        return moves, SearchOptimizerState(**states)

    return optax.GradientTransformationExtraArgs(init, update)


def _parts(what: str, tree: Any) -> Mapping[str, Any]:
    if isinstance(tree, Mapping) and set(tree) == {"weights", "arch"}:
        return tree
    if what == "params" and not jax.tree.leaves(tree):  # the leafless stand-in that optax.tree.map_params passes
        return {"weights": tree, "arch": tree}
    raise ValueError(f"search optimizer: {what} must be a dict with the keys 'weights' and 'arch'.")
