"""The operators on the simplex: published numbers, properties, gradients, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gaea_jax import simplex

# Incoming edges of the four nodes of a DARTS cell, and the same ids shuffled: segments need not be contiguous.
EDGES = (0,) * 2 + (1,) * 3 + (2,) * 4 + (3,) * 5
SHUFFLED = tuple(np.random.default_rng(0).permutation(EDGES).tolist())

tables = hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32))
few = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("k", [3, 8])
def test_uniform_has_entropy_log_k(k):
    uniform = simplex.uniform_like(jnp.zeros((2, k)))
    np.testing.assert_allclose(simplex.entropy(uniform), np.log(k), rtol=1e-6)
    np.testing.assert_allclose(simplex.kl(uniform, uniform), 0, atol=1e-7)


def test_kl_and_entropy_of_the_published_points():
    point = jnp.array([0.7, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(simplex.kl(point, simplex.uniform_like(point)), 0.445846372, rtol=1e-6)
    sparse = jnp.array([3.6787944e-06] * 3 + [0.99998896362])
    np.testing.assert_allclose(simplex.entropy(sparse), 1.4913e-4, rtol=1e-4)


def test_zero_probabilities_count_for_nothing():
    vertex = jnp.array([1.0, 0.0, 0.0])
    assert float(simplex.entropy(vertex)) == 0
    assert float(simplex.kl(vertex, jnp.array([0.5, 0.5, 0.0]))) == pytest.approx(np.log(2))
    assert float(simplex.kl(jnp.array([0.5, 0.5, 0.0]), vertex)) == np.inf
    chex.assert_tree_all_finite(jax.grad(simplex.entropy)(vertex))
    chex.assert_tree_all_finite(jax.grad(lambda p: simplex.kl(p, simplex.uniform_like(p)))(vertex))


def test_entropy_does_not_hide_a_nan():
    assert jnp.isnan(simplex.entropy(jnp.array([jnp.nan, 0.5, 0.5])))


@few
@given(tables)
def test_project_is_the_euclidean_projection_of_each_row(table):
    projected = simplex.project(table)
    expected = jnp.stack([optax.projections.projection_simplex(jnp.asarray(row)) for row in table])
    np.testing.assert_allclose(projected, expected, atol=2e-5)
    np.testing.assert_allclose(projected.sum(-1), 1, atol=1e-6)
    assert float(projected.min()) >= 0


@few
@given(tables, st.integers(0, 4))
def test_no_vertex_lies_beyond_the_projection(table, vertex):
    """The variational inequality <x - Px, v - Px> <= 0 for every vertex v is what makes Px the nearest point."""
    projected = np.asarray(simplex.project(table), np.float64)
    inner = ((table - projected) * (np.eye(5)[vertex] - projected)).sum(-1)
    assert inner.max() <= 1e-6 * max(1, np.abs(table).max())


@few
@given(tables)
def test_project_is_idempotent_and_ignores_a_constant(table):
    projected = simplex.project(table)
    np.testing.assert_allclose(simplex.project(projected), projected, atol=1e-6)
    np.testing.assert_allclose(simplex.project(table + 3), projected, atol=1e-4)


def test_project_keeps_large_and_long_rows_accurate():
    np.testing.assert_array_equal(simplex.project(jnp.array([1e20, 0.0, -1e20])), [1, 0, 0])
    row = jax.random.normal(jax.random.key(0), (10_000,)) * 1e-3
    expected = optax.projections.projection_simplex(row)
    projected = simplex.project(row)
    np.testing.assert_allclose(projected, expected, atol=1e-6)
    assert float(projected.sum()) == pytest.approx(1, abs=1e-5)


def test_project_derivative_agrees_with_differences_in_float64():
    with jax.enable_x64(True):
        row, direction = jnp.array([0.9, 0.5, -1.0, 0.3]), jnp.array([0.3, -0.2, 0.5, 0.1])
        project = jax.jit(simplex.project)
        difference = (project(row + 1e-6 * direction) - project(row - 1e-6 * direction)) / 2e-6
        jacobian = jax.jacrev(simplex.project)(row)
        np.testing.assert_allclose(jacobian @ direction, difference, atol=1e-8)
        np.testing.assert_allclose(jax.jvp(simplex.project, (row,), (direction,))[1], difference, atol=1e-8)


def test_project_passes_a_nan_on():
    projected = simplex.project(jnp.array([[jnp.nan, 0.0], [0.5, 0.5]]))
    assert jnp.isnan(projected[0]).any() and not jnp.isnan(projected[1]).any()


@pytest.mark.parametrize("segments", [np.asarray(EDGES, np.uint8), [7 * i for i in SHUFFLED]])
@pytest.mark.parametrize("operator", [simplex.project, simplex.softmax, simplex.normalise, simplex.entropy])
def test_a_segment_is_treated_as_a_row_of_its_own(operator, segments):
    flat = jax.random.uniform(jax.random.key(0), (2, len(segments)))
    ids = np.asarray(segments)
    result = np.asarray(operator(flat, segments=segments))
    for place, i in enumerate(np.unique(ids)):
        expected = operator(flat[:, ids == i])
        actual = result[:, place] if operator is simplex.entropy else result[:, ids == i]
        np.testing.assert_allclose(actual, expected, rtol=2e-6)


def test_kl_takes_segments():
    point = simplex.normalise(jnp.arange(1.0, 6.0), segments=(0, 0, 1, 1, 1))
    uniform = simplex.uniform_like(point, segments=(0, 0, 1, 1, 1))
    divergence = simplex.kl(point, uniform, segments=(0, 0, 1, 1, 1))
    np.testing.assert_allclose(divergence, [simplex.kl(point[:2], uniform[:2]), simplex.kl(point[2:], uniform[2:])])


@pytest.mark.parametrize("operator", [simplex.project, simplex.softmax, simplex.normalise, simplex.entropy])
def test_axis_moves_the_rows(operator):
    table = jax.random.uniform(jax.random.key(1), (3, 4, 2))
    moved = operator(jnp.moveaxis(table, 1, -1))
    expected = moved if operator is simplex.entropy else jnp.moveaxis(moved, -1, 1)
    np.testing.assert_allclose(operator(table, axis=1), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_operators_keep_the_dtype(dtype):
    table = jnp.asarray([[0.5, 0.25, 0.25]], dtype)
    for operator in (simplex.project, simplex.softmax, simplex.normalise, simplex.entropy, simplex.uniform_like):
        assert operator(table).dtype == dtype
    assert simplex.kl(table, table).dtype == dtype
    assert simplex.project(jnp.array([3, 0])).dtype == jnp.float32


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.6]], r"arch: row 1 sums to 1\.1; every row must be non-negative and sum to 1\."),
        ([1.5, -0.5], "arch: row has a negative value"),
        ([[[0.5, np.nan]]], "arch: row 0, 0 has a value that is not finite"),
        (np.array([0, 1]), "arch: need a floating dtype, got int"),
    ],
)
def test_check_names_the_offence(point, message):
    with pytest.raises(ValueError, match=message):
        simplex.check(point if isinstance(point, np.ndarray) else jnp.asarray(point), name="arch")


def test_check_reads_segments():
    simplex.check(jnp.array([0.5, 1.0, 0.5]), segments=(0, 1, 0))
    with pytest.raises(ValueError, match=r"point: segment 1 sums to 0\.9; every segment"):
        simplex.check(jnp.array([0.5, 0.9, 0.5]), segments=(0, 1, 0))


def test_check_lets_values_it_cannot_see_pass():
    simplex.check(jax.ShapeDtypeStruct((2, 3), jnp.float32))
    jax.jit(lambda p: simplex.check(p))(jnp.zeros((2, 3)))


def test_check_sees_constants_under_an_outer_jit():
    with pytest.raises(ValueError, match="sums to 0"):
        jax.jit(lambda x: simplex.check(np.zeros(3)) or x)(1.0)


@pytest.mark.parametrize(
    ("point", "options", "message"),
    [
        (jnp.ones(3), {"segments": (0, 0)}, "2 ids for a last axis of length 3"),
        (jnp.ones(2), {"segments": (0.0, 1.0)}, "flat sequence of integer ids"),
        (jnp.ones((2, 2)), {"segments": (0, 1), "axis": 0}, "axis must stay -1"),
        (jnp.float32(1), {}, "at least one axis"),
    ],
)
def test_operators_refuse_what_does_not_fit(point, options, message):
    with pytest.raises(ValueError, match=message):
        simplex.project(point, **options)


def test_traced_segments_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match="not a traced array"):
        jax.jit(lambda ids: simplex.project(jnp.ones(2), segments=ids))(jnp.array([0, 1]))
    with pytest.raises(ValueError, match="reference: shape"):
        simplex.kl(jnp.ones(2), jnp.ones(3))
