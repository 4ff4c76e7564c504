"""Mirror descent on the simplex: a gradient step in the geometry of the constraint set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from gaea_jax import simplex
from gaea_jax.simplex import Segments

# optax.inject_hyperparams turns every Python number among the arguments, defaults too, into a traced array;
# it leaves a NumPy integer alone, so that the default axis needs no static_args.
_LAST = np.int32(-1)


class Geometry(NamedTuple):
    """How a mirror step measures distance on the simplex.

    Attributes:
      step: ``(point, slope, axis, segments) -> new point``, the minimiser over the simplex of
        ``<slope, u> + D(u || point)``, where the slope is the learning rate times the gradient and D the
        Bregman divergence of the geometry. Arrays are float32 or float64 and of one shape.
    """

    step: Callable[[Array, Array, int, Segments | None], Array]


class MirrorDescentState(NamedTuple):
    """State of :func:`mirror_descent`.

    Attributes:
      count: int32 scalar, the number of updates made; the learning rate schedule reads it.
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states


def entropic(min_prob: ArrayLike = 0.0) -> Geometry:
    """The geometry of the negative entropy: steps multiply, and D is the Kullback-Leibler divergence.

    Args:
      min_prob: floor under the normalised point, before a last division by the row sum, so that the smallest
        entry is ``min_prob`` over a number just above one. With 0 an entry that has become 0 stays 0. May
        be traced.

    Returns:
      A :class:`Geometry`.

    Raises:
      ValueError: ``min_prob`` is a number outside [0, 1).
    """
    _check_floor(min_prob)

    def step(point: Array, slope: Array, axis: int, segments: Segments | None) -> Array:
        point = simplex.softmax(jnp.log(point) - slope, axis=axis, segments=segments)
        floor = jnp.asarray(min_prob).astype(point.dtype)
        return simplex.normalise(jnp.maximum(point, floor), axis=axis, segments=segments)

    return Geometry(step)


def euclidean() -> Geometry:
    """The geometry of the squared distance: a gradient step, then the projection onto every simplex.

    Returns:
      A :class:`Geometry`.
    """

    def step(point: Array, slope: Array, axis: int, segments: Segments | None) -> Array:
        return simplex.project(point - slope, axis=axis, segments=segments)

    return Geometry(step)


def _released(min_prob: ArrayLike) -> Geometry:
    """The released GAEA code's step: clamps the product before normalising, so takes no maximum out."""
    _check_floor(min_prob)

    def step(point: Array, slope: Array, axis: int, segments: Segments | None) -> Array:
        floor = jnp.asarray(min_prob).astype(point.dtype)
        product = jnp.maximum(point * jnp.exp(-slope), floor)
        return simplex.normalise(product, axis=axis, segments=segments)

    return Geometry(step)


def _check_floor(min_prob: ArrayLike) -> None:
    if isinstance(min_prob, (int, float)) and not 0 <= min_prob < 1:
        raise ValueError(f"min_prob: need a number from 0 up to 1, got {min_prob}.")


def mirror_descent(
    learning_rate: optax.ScalarOrSchedule,
    geometry: Geometry,
    *,
    axis: int | np.integer = _LAST,
    segments: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Mirror descent on a simplex for each row, or each segment, of the parameters.

    A step from p along the gradient g solves

    .. math::

      \min_{u \in \Delta} \; \eta \langle g, u \rangle + D_\phi(u \,\|\, p)

    exactly: with :func:`entropic` it is the exponentiated gradient, with :func:`euclidean` projected gradient
    descent. The update is the new point minus the old one, so ``optax.apply_updates`` lands on the simplex.
    In a chain this must be the last transform; anything that shapes the gradient may come before it.

    Every step normalises, so rounding does not accumulate: after 100,000 float32 steps the row sums are
    still within a few units of rounding of one. Adding the update to the point does lose the relative
    accuracy of entries far below the size of the move: one that shrinks by more than about 16 nats in a
    single float32 step becomes exactly 0. A positive ``min_prob`` lets it come back.

    Args:
      learning_rate: the step size, a scalar or a schedule of the update count.
      geometry: :func:`entropic` or :func:`euclidean`.
      axis: the axis along which the simplices run, the last by default. Static: to give one under
        ``optax.inject_hyperparams``, pass it ``static_args=("axis",)``.
      segments: for flat tables of unequal rows: integer ids over the last axis, equal ids forming one
        simplex. Either one sequence for all parameters, or a prefix of the parameter tree with a sequence or
        None at its leaves. Static.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose ``update`` needs ``params``. Updates have the
      dtype of the parameters. A parameter whose gradient is None gets a zero update.

    Raises:
      ValueError: from ``init``, when a parameter is not a distribution a row (traced and abstract values
        are not looked at); from ``update``, without ``params``; when ``axis`` is not a Python integer, or
        ``segments`` do not fit the parameters.

    Examples:
      >>> import jax, jax.numpy as jnp, numpy as np, optax
      >>> from gaea_jax import optim
      >>> cost = jnp.array([0.3, 0.1, 0.2])
      >>> solver = optim.mirror_descent(0.5, optim.euclidean())
      >>> params = jnp.ones(3) / 3
      >>> state = solver.init(params)
      >>> for _ in range(4):
      ...     grads = jax.grad(lambda p: p @ cost)(params)
      ...     updates, state = solver.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(np.asarray(params).round(3))
      [0.283 0.383 0.333]
      [0.233 0.433 0.333]
      [0.183 0.483 0.333]
      [0.133 0.533 0.333]

    References:
      Beck and Teboulle, `Mirror descent and nonlinear projected subgradient methods for convex optimization
      <https://doi.org/10.1016/S0167-6377(02)00231-6>`_, 2003

      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, equations 4 to 6
    """
    if not isinstance(axis, (int, np.integer)):
        raise ValueError(
            "mirror descent: axis must be a Python integer; under optax.inject_hyperparams pass static_args=('axis',)."
        )
    axis = int(axis)

    def init(params: optax.Params) -> MirrorDescentState:
        ids = _spread(segments, params)

        def check(path: Any, point: Any, ids: Segments | None) -> None:
            name = f"mirror descent: params{jax.tree_util.keystr(path)}"
            simplex.check(point, axis=axis, segments=ids, name=name)

        jax.tree_util.tree_map_with_path(check, params, ids)
        return MirrorDescentState(count=jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: MirrorDescentState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MirrorDescentState]:
        del extra_args
        if params is None:
            raise ValueError("mirror descent: update needs the current point; call update(grads, state, params).")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def move(point: Array | None, gradient: Array | None, ids: Segments | None) -> Array | None:
            if point is None:
                return None
            if gradient is None:
                return jnp.zeros_like(point)
            dtype = simplex.working_dtype(point.dtype)
            old = point.astype(dtype)
            slope = jnp.asarray(rate).astype(dtype) * gradient.astype(dtype)
            return (geometry.step(old, slope, axis, ids) - old).astype(point.dtype)

        moves = jax.tree.map(move, params, updates, _spread(segments, params), is_leaf=lambda x: x is None)
        return moves, MirrorDescentState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _spread(segments: Any, params: optax.Params) -> Any:
    """A prefix tree of segment ids, spread to one entry (ids or None) for each parameter."""

    def is_entry(node: Any) -> bool:
        if node is None or hasattr(node, "ndim"):
            return True
        return isinstance(node, (tuple, list)) and all(isinstance(i, (int, np.integer)) for i in node)

    if not jax.tree.leaves(params):  # also the leafless stand-in that optax.tree.map_params passes to init
        return params
    try:
        return jax.tree.broadcast(segments, params, is_leaf=is_entry)
    except ValueError as error:
        raise ValueError(
            "mirror descent: segments must be integer ids, or a prefix of the parameter tree with ids or "
            "None at its leaves."
        ) from error


def exponentiated_gradient(
    learning_rate: optax.ScalarOrSchedule,
    *,
    axis: int | np.integer = _LAST,
    segments: Any = None,
    min_prob: ArrayLike = 0.0,
    clamp: str = "shift-invariant",
) -> optax.GradientTransformationExtraArgs:
    r"""Exponentiated gradient: every entry is multiplied by exp(-learning rate x gradient), every row
    normalised.

    This is the architecture update of GAEA, and exactly ``mirror_descent(learning_rate,
    entropic(min_prob))``. The arithmetic is ``softmax(log p - learning_rate * g)`` with the maximum taken
    out, so no gradient is too large, and a constant added to a row of the gradient changes nothing.

    Args:
      learning_rate: the step size, a scalar or a schedule of the update count.
      axis: the axis along which the simplices run, a Python integer; static, see :func:`mirror_descent`.
      segments: ids over the last axis, or a prefix tree of them; static, see :func:`mirror_descent`.
      min_prob: floor under the probabilities, see :func:`entropic`. May be traced. 0 is the textbook's
        update, 1e-5 what the GAEA code uses.
      clamp: ``"shift-invariant"`` floors the normalised point. ``"release"`` floors the product before it is
        normalised, as the released GAEA code does: the floor then depends on the gradient's offset, and
        the product overflows where ``-learning_rate * g`` exceeds 88 in float32. Use it to compare with
        that code only.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`; see :func:`mirror_descent` for its contract, its
      errors and its place in a chain.

    Raises:
      ValueError: another ``clamp``, or a ``min_prob`` outside [0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp, numpy as np, optax
      >>> from gaea_jax import optim
      >>> cost = jnp.array([1.0, 0.0, 0.5, -1.0])
      >>> solver = optim.exponentiated_gradient(0.1)
      >>> params = jnp.full(4, 0.25)
      >>> state = solver.init(params)
      >>> for _ in range(3):
      ...     grads = jax.grad(lambda p: p @ cost)(params)
      ...     updates, state = solver.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(np.asarray(params).round(4))
      [0.2284 0.2524 0.2401 0.279 ]
      [0.2075 0.2535 0.2294 0.3096]
      [0.1875 0.2531 0.2178 0.3416]

    References:
      Kivinen and Warmuth, `Exponentiated Gradient versus Gradient Descent for Linear Predictors
      <https://doi.org/10.1006/inco.1996.2612>`_, 1997

      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, equation 8
    """
    geometries = {"shift-invariant": entropic, "release": _released}
    if clamp not in geometries:
        raise ValueError(f"clamp: need 'shift-invariant' or 'release', got {clamp!r}.")
    return mirror_descent(learning_rate, geometries[clamp](min_prob), axis=axis, segments=segments)
