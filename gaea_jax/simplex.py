"""Operators on tables of categorical distributions: a simplex a row, or a segment of a flat table.

Every operator takes ``axis``, along which the rows run, or ``segments``: one integer id for each position
of the last axis, equal ids forming one simplex. Segments are static (Python integers or a NumPy array,
never traced); they may be of unequal length and need not be contiguous. Results keep the dtype of the
input; the arithmetic is done in float32 at least. This module imports JAX and NumPy only.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

Segments = Sequence[int] | np.ndarray


@functools.lru_cache(maxsize=256)
def _layout(segments: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each segment's entries lie: (index [S, L], is an entry [S, L], place of an entry in S*L [n])."""
    _, rows, lengths = np.unique(np.asarray(segments), return_inverse=True, return_counts=True)
    index = np.zeros((len(lengths), lengths.max()), np.int32)
    columns = np.zeros(len(rows), np.int32)
    for row in range(len(lengths)):
        (positions,) = np.nonzero(rows == row)
        index[row, : len(positions)] = positions
        columns[positions] = np.arange(len(positions))
    entry = np.arange(index.shape[1])[None, :] < lengths[:, None]
    return index, entry, (rows * index.shape[1] + columns).astype(np.int32)


def _as_ids(segments: Segments, width: int, axis: int, ndim: int) -> tuple[int, ...]:
    if isinstance(segments, jax.core.Tracer):
        raise ValueError("segments: must be static integers, not a traced array.")
    ids = np.asarray(segments)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"segments: need a flat sequence of integer ids, got {segments!r}.")
    if len(ids) != width:
        raise ValueError(f"segments: {len(ids)} ids for a last axis of length {width}; give one id an entry.")
    if axis not in (-1, ndim - 1):
        raise ValueError(f"axis: segments run over the last axis, so axis must stay -1, got {axis}.")
    return tuple(ids.tolist())


def _dtype(point: Array) -> jnp.dtype:
    return point.dtype if jnp.issubdtype(point.dtype, jnp.floating) else jnp.dtype(jnp.float32)


def working_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to compute in for arrays of ``dtype``: float32 for narrower ones, else the same.

    Args:
      dtype: a floating dtype.

    Returns:
      float32 or float64.
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _rows(point: Array, axis: int, segments: Segments | None, fill: float) -> tuple[Array, Callable[[Array], Array]]:
    """A table with one simplex a row of its last axis, and the function that restores the shape.

    Segments shorter than the longest one are padded with ``fill``, which the operator must leave without
    effect.
    """
    if point.ndim == 0:
        raise ValueError("point: need at least one axis, got a scalar.")
    dtype = _dtype(point)
    table = point.astype(working_dtype(dtype))
    if segments is None:
        return jnp.moveaxis(table, axis, -1), lambda rows: jnp.moveaxis(rows, -1, axis).astype(dtype)
    index, entry, place = _layout(_as_ids(segments, point.shape[-1], axis, point.ndim))
    table = table[..., index]
    table = jnp.where(jnp.broadcast_to(entry, table.shape), table, fill)
    return table, lambda rows: rows.reshape(*point.shape[:-1], -1)[..., place].astype(dtype)


def uniform_like(point: ArrayLike, *, axis: int = -1, segments: Segments | None = None) -> Array:
    """The centre of every simplex: one over the number of entries of the row or segment.

    Args:
      point: floating array [..., k, ...]; only its shape and dtype matter.
      axis: the axis along which the rows run (ignored by ``segments``, which need the last).
      segments: ids over the last axis, see the module's docstring.

    Returns:
      An array of the shape and dtype of ``point``.

    Example:
      >>> import jax.numpy as jnp
      >>> print(uniform_like(jnp.zeros(5), segments=(0, 0, 1, 1, 1)).round(3))
      [0.5   0.5   0.333 0.333 0.333]
    """
    return normalise(jnp.ones_like(jnp.asarray(point)), axis=axis, segments=segments)


def normalise(point: ArrayLike, *, axis: int = -1, segments: Segments | None = None) -> Array:
    """Divides every row by its sum.

    Args:
      point: array [..., k, ...] of non-negative numbers; a row of zeros comes back as NaN.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.

    Returns:
      An array of the shape of ``point`` whose rows sum to one.

    Example:
      >>> import jax.numpy as jnp
      >>> print(normalise(jnp.array([[1.0, 3.0], [2.0, 2.0]])))
      [[0.25 0.75]
       [0.5  0.5 ]]
    """
    point = jnp.asarray(point)
    rows, back = _rows(point, axis, segments, fill=0.0)
    return back(rows / jnp.sum(rows, axis=-1, keepdims=True))


def softmax(logits: ArrayLike, *, axis: int = -1, segments: Segments | None = None) -> Array:
    """The point of every simplex with the given unnormalised log-probabilities.

    Args:
      logits: array [..., k, ...]; minus infinity stands for probability zero.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.

    Returns:
      An array of the shape of ``logits`` whose rows sum to one.

    Example:
      >>> import jax.numpy as jnp
      >>> print(softmax(jnp.array([0.0, 0.0, 9.0]), segments=(0, 0, 1)))
      [0.5 0.5 1. ]
    """
    rows, back = _rows(jnp.asarray(logits), axis, segments, fill=-jnp.inf)
    return back(jax.nn.softmax(rows, axis=-1))


def project(point: ArrayLike, *, axis: int = -1, segments: Segments | None = None) -> Array:
    r"""The nearest point of every simplex in the Euclidean distance.

    The projection of a row x is max(x - tau, 0), where tau makes it sum to one. Tau is found by dropping
    entries at or below the threshold until none is left to drop: it ends exactly, after at most k passes
    and typically after a few, and on a CPU is about ten times faster than sorting for rows of a thousand.
    ``optax.projections`` projects a whole tree onto one simplex; this projects each row onto its own.

    Args:
      point: array [..., k, ...] of any real numbers.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.

    Returns:
      An array of the shape of ``point`` whose rows are non-negative and sum to one. It is differentiable: the
      Jacobian is that of the projection onto the face of the simplex where the result lies.

    Example:
      >>> import jax.numpy as jnp
      >>> print(project(jnp.array([[0.75, 0.5, -1.0], [9.0, 9.0, 8.5]])))
      [[0.625 0.375 0.   ]
       [0.5   0.5   0.   ]]

    References:
      Michelot, `A finite algorithm for finding the projection of a point onto the canonical simplex of R^n
      <https://doi.org/10.1007/BF00938486>`_, 1986
    """
    point = jnp.asarray(point)
    rows, back = _rows(point, axis, segments, fill=-jnp.inf)
    return back(_project_rows(rows))


@jax.jit
def _project_rows(rows: Array) -> Array:
    # Adding a constant to a row leaves its projection where it is; a largest entry of zero keeps the sums
    # accurate, and bounds tau to [-1, 0], so that an entry at -2 is dropped.
    rows = jnp.maximum(rows - lax.stop_gradient(jnp.max(rows, axis=-1, keepdims=True)), -2.0)
    fixed = lax.stop_gradient(rows)

    def threshold(values: Array, kept: Array) -> Array:
        total = jnp.sum(jnp.where(kept, values, 0.0), axis=-1, keepdims=True)
        return (total - 1.0) / jnp.sum(kept, axis=-1, keepdims=True, dtype=values.dtype)

    def drop(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, _ = carry
        fewer = kept & (fixed > threshold(fixed, kept))
        return fewer, jnp.any(fewer != kept)

    start = fixed > -1.0
    kept, _ = lax.while_loop(lambda carry: carry[1], drop, (start, jnp.any(start)))
    return jax.nn.relu(rows - threshold(rows, kept))


def entropy(point: ArrayLike, *, axis: int = -1, segments: Segments | None = None) -> Array:
    """Shannon entropy of every row, in nats; ``0 log 0`` is 0.

    Args:
      point: array [..., k, ...] of probabilities.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.

    Returns:
      ``point`` without ``axis``; or [..., S], one entry for each of the S segments in ascending order of
      id. Between 0 (a vertex) and log k (uniform). Its gradient at a zero entry is 0, not infinite: such
      an entry cannot return under a multiplicative update, and must not turn its row into NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> print(entropy(jnp.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).round(4))
      [1.3863 0.    ]
    """
    point = jnp.asarray(point)
    rows, _ = _rows(point, axis, segments, fill=0.0)
    there = rows != 0
    terms = jnp.where(there, -rows * jnp.log(jnp.where(there, rows, 1.0)), 0.0)
    return jnp.sum(terms, axis=-1).astype(_dtype(point))


def kl(point: ArrayLike, reference: ArrayLike, *, axis: int = -1, segments: Segments | None = None) -> Array:
    """Kullback-Leibler divergence of every row of ``point`` from ``reference``, in nats; ``0 log 0`` is 0.

    With ``reference = uniform_like(point)`` it is the entropic regulariser of the GAEA code (sum of p
    log(p k)).

    Args:
      point: array [..., k, ...] of probabilities.
      reference: array of the same shape and dtype; infinite where it is 0 and ``point`` is not.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.

    Returns:
      ``point`` without ``axis``; or [..., S], one entry for each segment. At a zero entry the gradient is
      0, as in :func:`entropy`.

    Example:
      >>> import jax.numpy as jnp
      >>> point = jnp.array([0.7, 0.1, 0.1, 0.1])
      >>> print(kl(point, uniform_like(point)).round(6))
      0.445846
    """
    point, reference = jnp.asarray(point), jnp.asarray(reference)
    if point.shape != reference.shape:
        raise ValueError(f"reference: shape {reference.shape} differs from the point's {point.shape}.")
    rows, _ = _rows(point, axis, segments, fill=0.0)
    others, _ = _rows(reference, axis, segments, fill=1.0)
    there = rows != 0
    ratio = jnp.log(jnp.where(there, rows, 1.0)) - jnp.log(jnp.where(there, others, 1.0))
    return jnp.sum(jnp.where(there, rows * ratio, 0.0), axis=-1).astype(_dtype(point))


def largest(point: ArrayLike, k: int, *, axis: int = -1, segments: Segments | None = None) -> Array:
    """Which are the k largest entries of each row; of equal ones the first are taken.

    Args:
      point: table of real numbers.
      k: how many, a positive Python integer; a shorter row has all.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.

    Returns:
      Bool, of the shape of ``point``.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(largest(jnp.array([1, 3, 2, 5, 5, 5]), 2, segments=(0, 0, 0, 1, 1, 1)).astype(int))
      [0 1 1 1 1 0]
    """
    rows, back = _rows(jnp.asarray(point), axis, segments, fill=-jnp.inf)
    order = jnp.argsort(rows, axis=-1, stable=True, descending=True)
    return back(jnp.argsort(order, axis=-1) < k) > 0


def break_ties(point: ArrayLike, preferred: ArrayLike) -> Array:
    """Numbers that order entries as those of a table do, and among equal ones a preferred one before the others.

    Args:
      point: table of real numbers, of less than 2^24 entries.
      preferred: bool, of the same shape.

    Returns:
      Ranks, float32 whole numbers of the shape of ``point``. They compare entries of different rows too.

    Raises:
      ValueError: the shapes differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(break_ties(jnp.array([1.0, 1.0, 0.5]), jnp.array([False, True, True])))
      [2. 3. 1.]
    """
    point, preferred = jnp.asarray(point), jnp.asarray(preferred)
    if point.shape != preferred.shape:
        raise ValueError(f"preferred: has shape {preferred.shape}, the table {point.shape}.")
    below = jnp.searchsorted(jnp.sort(point, axis=None), point.reshape(-1)).reshape(point.shape)
    return (2 * below + preferred.astype(below.dtype)).astype(jnp.float32)


def check(point: ArrayLike, *, axis: int = -1, segments: Segments | None = None, name: str = "point") -> None:
    """Refuses values that are not distributions; traced and abstract arrays have no values and pass.

    A row may miss its sum by the square root of the machine epsilon (3e-4 in float32, 9e-2 in bfloat16),
    which admits rows typed with a few digits.

    Args:
      point: array [..., k, ...], a tracer or a ``jax.ShapeDtypeStruct``.
      axis: the axis along which the rows run.
      segments: ids over the last axis, see the module's docstring.
      name: what to call the array in the message.

    Raises:
      ValueError: a dtype that is not floating, an entry that is negative or not finite, or a row that does
        not sum to one.

    Example:
      >>> import jax.numpy as jnp
      >>> check(jnp.array([[0.5, 0.5], [0.5, 0.6]]))
      Traceback (most recent call last):
        ...
      ValueError: point: row 1 sums to 1.1; every row must be non-negative and sum to 1.
    """
    if isinstance(point, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        return
    # NumPy throughout: under an outer jit, jax.numpy would turn even a constant into a tracer.
    values = np.asarray(point)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name}: need a floating dtype, got {values.dtype}.")
    tolerance = float(jnp.finfo(values.dtype).eps) ** 0.5
    if segments is None:
        kind, rows = "row", [np.moveaxis(values.astype(np.float64), axis, -1)]
    else:
        ids = np.asarray(_as_ids(segments, values.shape[-1], axis, values.ndim))
        kind, rows = "segment", [values[..., ids == i].astype(np.float64) for i in np.unique(ids)]
    finite, smallest, sums = (
        np.stack([reduce(row, axis=-1) for row in rows], axis=-1)
        for reduce in (lambda row, axis: np.isfinite(row).all(axis=axis), np.min, np.sum)
    )
    for bad, offence in (
        (~finite, "has a value that is not finite"),
        (smallest < 0, "has a negative value"),
        (np.abs(sums - 1) > tolerance, "sums to {:.6g}"),
    ):
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            place = where if segments is not None else where[:-1]
            label = f"{kind} {', '.join(map(str, place))}".strip()
            raise ValueError(
                f"{name}: {label} {offence.format(sums[where])}; every {kind} must be non-negative and sum to 1."
            )
