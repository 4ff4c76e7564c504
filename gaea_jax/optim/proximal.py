"""Proximal steps: any Optax update, followed by a proximal operator or a projection."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from gaea_jax import simplex

Keep = Literal["one", "magnitude"]
Prox = Callable[[Array, Array], Array]
"""``prox(point, step_size)``, for one array: argmin over u of ``step_size * h(u) + |u - point|^2 / 2``."""


class ProximalState(NamedTuple):
    """State of :func:`proximal`.

    Attributes:
      count: int32 scalar, the number of updates made; the step size schedule reads it.
      inner: state of the inner transform.
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in Optax's own states
    inner: optax.OptState


def proximal(
    inner: optax.GradientTransformation,
    prox: Prox,
    *,
    step_size: optax.ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Follows every update of an inner transform by a proximal operator.

    The new point is prox(p + u, step_size) for an inner update u, leaf by leaf; with ``optax.sgd`` inside
    and the same step size this is proximal gradient descent for a loss plus h. The update returned is the
    new point minus the old one, so ``optax.apply_updates`` lands on it (to rounding; zeros are exact). In
    a chain this must be the last transform.

    Args:
      inner: any Optax transform; its updates are what would have been applied.
      prox: the operator: :func:`box`, :func:`l1`, :func:`nonnegative_l1`, :func:`cardinality`,
        :func:`one_hot`, :func:`one_hot_rows`, or your own ``prox(point, step_size)``. A static argument of
        ``optax.inject_hyperparams``.
      step_size: what scales the penalty, a scalar or a schedule of the update count. Give it the learning
        rate of the inner transform. Indicators of a set (box, cardinality, one_hot, one_hot_rows) ignore it.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose ``update`` needs ``params``; it passes extra
      arguments to the inner transform.

    Raises:
      ValueError: from ``update``, without ``params``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gaea_jax import optim
      >>> solver = optim.proximal(optax.sgd(0.5), optim.l1(1.0), step_size=0.5)
      >>> params = jnp.array([2.0, -0.25])
      >>> state = solver.init(params)
      >>> for _ in range(3):
      ...     grads = jax.grad(lambda p: 0.5 * jnp.sum((p - 3.0) ** 2))(params)
      ...     updates, state = solver.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params)
      [2.    0.875]
      [2.     1.4375]
      [2.      1.71875]

    References:
      Parikh and Boyd, `Proximal Algorithms <https://doi.org/10.1561/2400000003>`_, 2014

      Yao et al, `Efficient Neural Architecture Search via Proximal Iterations
      <https://arxiv.org/abs/1905.13577>`_, 2020
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> ProximalState:
        return ProximalState(count=jnp.zeros([], jnp.int32), inner=inner.init(params))

    def update(
        updates: optax.Updates,
        state: ProximalState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ProximalState]:
        if params is None:
            raise ValueError("proximal: update needs the current point; call update(grads, state, params).")
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        size = step_size(state.count) if callable(step_size) else step_size

        def move(point: Array | None, change: Array | None) -> Array | None:
            if point is None:
                return None
            target = point if change is None else point + change.astype(point.dtype)
            return prox(target, jnp.asarray(size).astype(point.dtype)) - point

        moves = jax.tree.map(move, params, updates, is_leaf=lambda x: x is None)
        return moves, ProximalState(count=optax.safe_increment(state.count), inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def project_onto(
    inner: optax.GradientTransformation, projection: Callable[[Array], Array]
) -> optax.GradientTransformationExtraArgs:
    """Follows every update of an inner transform by a projection onto a set, leaf by leaf.

    Args:
      inner: any Optax transform.
      projection: ``projection(point) -> nearest point of the set``, for one array:
        ``gaea_jax.simplex.project`` (each row onto its simplex), or a function of ``optax.projections``
        (each leaf as a whole). A static argument of ``optax.inject_hyperparams``.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`; see :func:`proximal` for its contract.

    Raises:
      ValueError: from ``update``, without ``params``.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from gaea_jax import optim, simplex
      >>> solver = optim.project_onto(optax.sgd(0.5), simplex.project)
      >>> params = jnp.array([[0.5, 0.5], [0.75, 0.25]])
      >>> state = solver.init(params)
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> updates, state = solver.update(grads, state, params)
      >>> print(optax.apply_updates(params, updates))
      [[0.25 0.75]
       [1.   0.  ]]

    References:
      Goldstein, `Convex programming in Hilbert space <https://doi.org/10.1090/S0002-9904-1964-11178-2>`_,
      1964
    """
    return proximal(inner, lambda point, _: projection(point))


def box(lower: ArrayLike = 0.0, upper: ArrayLike = 1.0) -> Prox:
    """The projection onto a box: every entry clipped to [lower, upper] (the set C2 of NASP).

    Args:
      lower: smallest value, a scalar or an array that broadcasts to the point.
      upper: largest value, likewise.

    Returns:
      A prox operator that ignores the step size.

    Raises:
      ValueError: ``lower`` and ``upper`` are numbers in the wrong order.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(box()(jnp.array([-0.25, 0.5, 1.25]), 1.0))
      [0.  0.5 1. ]
    """
    if isinstance(lower, (int, float)) and isinstance(upper, (int, float)) and not lower <= upper:
        raise ValueError(f"box: lower must not exceed upper, got {lower} and {upper}.")

    def prox(point: Array, step_size: ArrayLike) -> Array:
        del step_size
        return jnp.clip(point, jnp.asarray(lower).astype(point.dtype), jnp.asarray(upper).astype(point.dtype))

    return prox


def l1(strength: ArrayLike) -> Prox:
    """The proximal operator of ``strength * |p|_1``: soft thresholding.

    Args:
      strength: weight of the penalty, a non-negative scalar; may be traced.

    Returns:
      A prox operator: every entry moves towards zero by ``step_size * strength`` and stops there.

    Raises:
      ValueError: ``strength`` is a negative number.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(l1(1.0)(jnp.array([-2.0, 0.25, 1.0]), 0.5))
      [-1.5  0.   0.5]
    """
    _check_strength("l1", strength)

    def prox(point: Array, step_size: ArrayLike) -> Array:
        cut = _product(step_size, strength, point)
        return jnp.sign(point) * jax.nn.relu(jnp.abs(point) - cut)

    return prox


def nonnegative_l1(strength: ArrayLike) -> Prox:
    """The proximal operator of ``strength * |p|_1`` restricted to p >= 0.

    Args:
      strength: weight of the penalty, a non-negative scalar; may be traced.

    Returns:
      A prox operator: every entry is lowered by ``step_size * strength``, negative results become 0.

    Raises:
      ValueError: ``strength`` is a negative number.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(nonnegative_l1(1.0)(jnp.array([-2.0, 0.25, 1.0]), 0.5))
      [0.  0.  0.5]
    """
    _check_strength("nonnegative_l1", strength)

    def prox(point: Array, step_size: ArrayLike) -> Array:
        return jax.nn.relu(point - _product(step_size, strength, point))

    return prox


def _check_strength(name: str, strength: ArrayLike) -> None:
    if isinstance(strength, (int, float)) and not strength >= 0:
        raise ValueError(f"{name}: strength must not be negative, got {strength}.")


def _product(step_size: ArrayLike, strength: ArrayLike, point: Array) -> Array:
    return jnp.asarray(step_size).astype(point.dtype) * jnp.asarray(strength).astype(point.dtype)


def cardinality(k: int, *, axis: int = -1) -> Prox:
    """The projection onto rows with at most k entries that are not zero: the k largest in magnitude stay.

    Args:
      k: how many entries of a row stay, a positive Python integer (k = 1 is the set C1 of NASP).
      axis: the axis along which the rows run.

    Returns:
      A prox operator that ignores the step size. Of equal magnitudes the first stay.

    Raises:
      ValueError: ``k`` is below 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(cardinality(2)(jnp.array([0.5, -2.0, 1.0]), 1.0))
      [ 0. -2.  1.]
    """
    if k < 1:
        raise ValueError(f"cardinality: k must be at least 1, got {k}.")

    def prox(point: Array, step_size: ArrayLike) -> Array:
        del step_size
        return jnp.where(simplex.largest(jnp.abs(point), k, axis=axis), point, 0.0)

    return prox


def one_hot(*, axis: int = -1, keep: Keep = "one", prefer: ArrayLike | None = None) -> Prox:
    """One entry a row: the nearest vertex of the simplex, or the nearest point of the box with one entry.

    It discretises a relaxed choice: the largest entry (not the largest magnitude) of a row stays. The second form is
    the projection onto the intersection of C1 and C2 of NASP, a single entry within [0, 1]. It is not the same as
    clipping before :func:`cardinality`, which makes ties, or after it, which may keep a negative entry and clip it
    to 0.

    Args:
      axis: the axis along which the rows run.
      keep: the value of the entry that stays: ``"one"``, or ``"magnitude"``, what it was, clipped to [0, 1].
      prefer: bool, of the shape of the point: of equal entries one of these wins, as the choice made before does
        where a choice should not change without need. By default, and among several of these, the first wins.

    Returns:
      A prox operator that ignores the step size.

    Raises:
      ValueError: ``keep`` is neither; from the operator, if ``prefer`` has another shape than the point.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(one_hot()(jnp.array([[0.25, 0.75, 0.5], [0.5, 0.5, 0.25]]), 1.0))
      [[0. 1. 0.]
       [1. 0. 0.]]
      >>> print(one_hot(keep="magnitude")(jnp.array([[-0.75, 0.5], [1.5, 1.25]]), 1.0))
      [[0.  0.5]
       [1.  0. ]]

    References:
      Yao et al, `Efficient Neural Architecture Search via Proximal Iterations
      <https://arxiv.org/abs/1905.13577>`_, 2020; the value 1 is that of the released code
    """
    _check_keep("one_hot", keep)

    def prox(point: Array, step_size: ArrayLike) -> Array:
        del step_size
        return _kept(point, simplex.largest(_scores(point, prefer), 1, axis=axis), keep)

    return prox


def one_hot_rows(
    k: int, *, segments: simplex.Segments | None = None, keep: Keep = "one", prefer: ArrayLike | None = None
) -> Prox:
    """One entry in each of k rows of a table: the rows whose largest entry is largest; the others become 0.

    With a row an edge and a segment a node, it keeps one operation on each of the k best edges into a node, as NASP
    does in every step of a search.

    Args:
      k: how many rows of a segment stay, a positive Python integer.
      segments: for each row the id of its segment, static integers; None makes all rows one segment.
      keep: as of :func:`one_hot`.
      prefer: as of :func:`one_hot`; of equal rows too, one with a preferred largest entry wins.

    Returns:
      A prox operator for points [rows, entries]; it ignores the step size.

    Raises:
      ValueError: ``k`` is below 1 or ``keep`` unknown; from the operator, if segments or ``prefer`` do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[0.5, 0.75], [0.25, 0.5], [0.5, 0.25], [0.0, 0.25]])
      >>> print(one_hot_rows(1, segments=(0, 0, 1, 1))(rows, 1.0))
      [[0. 1.]
       [0. 0.]
       [1. 0.]
       [0. 0.]]

    References:
      Yao et al, `Efficient Neural Architecture Search via Proximal Iterations
      <https://arxiv.org/abs/1905.13577>`_, 2020, the released code
    """
    if k < 1:
        raise ValueError(f"one_hot_rows: k must be at least 1, got {k}.")
    _check_keep("one_hot_rows", keep)

    def prox(point: Array, step_size: ArrayLike) -> Array:
        del step_size
        if point.ndim != 2:
            raise ValueError(f"one_hot_rows: wants a table [rows, entries], got the shape {point.shape}.")
        scores = _scores(point, prefer)
        rows = simplex.largest(jnp.max(scores, axis=-1), k, segments=segments)
        return _kept(point, simplex.largest(scores, 1) & rows[:, None], keep)

    return prox


def _check_keep(name: str, keep: str) -> None:
    if keep not in ("one", "magnitude"):
        raise ValueError(f"{name}: keep must be 'one' or 'magnitude', got {keep!r}.")


def _scores(point: Array, prefer: ArrayLike | None) -> Array:
    return point if prefer is None else simplex.break_ties(point, prefer)


def _kept(point: Array, chosen: Array, keep: str) -> Array:
    value = jnp.ones_like(point) if keep == "one" else jnp.clip(point, 0, 1)
    return jnp.where(chosen, value, jnp.zeros_like(point))
