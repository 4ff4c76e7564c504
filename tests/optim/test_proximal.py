"""Proximal operators against their definition, and the wrapper around any inner transform."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gaea_jax import optim, simplex

rows = hnp.arrays(np.float32, (3, 4), elements=st.floats(-3, 3, width=32))
few = settings(max_examples=25, deadline=None)

# Each operator with its penalty h; infinite outside the set.
PENALTIES = {
    "box": (optim.box(), lambda u: np.where((u >= 0) & (u <= 1), 0, np.inf).sum(-1)),
    "l1": (optim.l1(0.5), lambda u: 0.5 * np.abs(u).sum(-1)),
    "nonnegative_l1": (optim.nonnegative_l1(0.5), lambda u: np.where(u >= 0, 0.5 * u, np.inf).sum(-1)),
    "cardinality": (optim.cardinality(2), lambda u: np.where((u != 0).sum(-1) <= 2, 0, np.inf)),
    "one_hot_magnitude": (
        optim.one_hot(keep="magnitude"),
        lambda u: np.where(((u != 0).sum(-1) <= 1) & (u >= 0).all(-1) & (u <= 1).all(-1), 0, np.inf),
    ),
    "one_hot": (
        optim.one_hot(),
        lambda u: np.where(((u == 1).sum(-1) == 1) & ((u == 0).sum(-1) == u.shape[-1] - 1), 0, np.inf),
    ),
}


@few
@given(rows, rows, st.integers(0, 3))
@pytest.mark.parametrize("name", PENALTIES)
def test_no_other_point_has_a_lower_proximal_objective(name, point, other, vertex):
    prox, penalty = PENALTIES[name]
    size = 0.75

    def objective(u):
        u = np.asarray(u, np.float64)
        return size * penalty(u) + 0.5 * ((u - point) ** 2).sum(-1)

    best = objective(prox(jnp.asarray(point), size))
    assert np.isfinite(best).all()
    candidates = [prox(jnp.asarray(other), size), other, np.zeros_like(point), np.tile(np.eye(4)[vertex], (3, 1))]
    candidates.append(np.where(np.arange(4) == vertex, point, 0))
    for candidate in candidates:
        assert (best <= objective(candidate) + 1e-5).all()


def test_operators_on_known_points():
    np.testing.assert_array_equal(optim.box()(jnp.array([-0.25, 0.5, 1.25]), 1.0), [0, 0.5, 1])
    np.testing.assert_array_equal(optim.cardinality(1)(jnp.array([-0.75, 0.5]), 1.0), [-0.75, 0])
    np.testing.assert_array_equal(optim.cardinality(9)(jnp.array([-0.75, 0.5]), 1.0), [-0.75, 0.5])
    np.testing.assert_array_equal(optim.cardinality(1)(jnp.array([0.5, 0.5, -0.5]), 1.0), [0.5, 0, 0])
    np.testing.assert_array_equal(optim.one_hot()(jnp.array([-0.75, 0.5]), 1.0), [0, 1])
    np.testing.assert_array_equal(
        optim.cardinality(1, axis=0)(jnp.array([[1.0, 2.0], [3.0, 1.0]]), 1.0), [[0, 2], [3, 0]]
    )
    np.testing.assert_array_equal(optim.one_hot(axis=0)(jnp.array([[1.0, 2.0], [3.0, 1.0]]), 1.0), [[0, 1], [1, 0]])


def test_the_intersection_of_the_box_and_the_single_entries():
    """Clipping before or after the largest magnitude is taken would fail on the first two."""
    magnitude, one = (optim.one_hot(keep=keep) for keep in ("magnitude", "one"))
    for point, nearest in (
        ([-0.9, 0.5], [0, 0.5]),
        ([1.5, 1.2], [1, 0]),
        ([0.2, 0.7, 0.1], [0, 0.7, 0]),
        ([-0.5, -0.25], [0, 0]),
    ):
        np.testing.assert_array_equal(magnitude(jnp.array(point), 1.0), jnp.array(nearest, jnp.float32))
    np.testing.assert_array_equal(one(jnp.array([0.2, 0.7, 0.1]), 1.0), [0, 1, 0])
    np.testing.assert_allclose(optim.box()(jnp.array([-0.2, 0.4, 1.3]), 1.0), [0, 0.4, 1])
    clipped = optim.cardinality(1)(optim.box()(jnp.array([1.5, 1.2]), 1.0), 1.0)
    assert clipped.tolist() == [1, 0]  # by the luck of the tie


def test_rows_compete_within_their_segment():
    segments = (2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5)
    found = optim.one_hot_rows(2, segments=segments)(jnp.full((14, 8), 0.5), 1.0)
    assert np.argwhere(found).tolist() == [[row, 0] for row in (0, 1, 2, 3, 5, 6, 9, 10)]
    rows = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.85]])
    np.testing.assert_array_equal(optim.one_hot_rows(2)(rows, 1.0), [[0, 1], [0, 0], [0, 1]])
    kept = optim.one_hot_rows(1, segments=(0, 0, 1), keep="magnitude")(rows, 1.0)
    np.testing.assert_array_equal(kept, np.where([[0, 1], [0, 0], [0, 1]], rows, 0))


def test_a_preferred_entry_wins_a_tie_and_only_a_tie():
    rows = jnp.array([[1.0, 0.5, 1.0], [1.0, 1.0, 0.0], [0.25, 0.5, 0.5]])
    prefer = np.array([[False, True, True], [False, True, False], [False, False, True]])
    expected = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(optim.one_hot(prefer=prefer)(rows, 1.0), expected)
    np.testing.assert_array_equal(optim.one_hot()(rows, 1.0).argmax(1), [0, 0, 1])
    np.testing.assert_array_equal(
        optim.one_hot_rows(1, prefer=np.arange(9).reshape(3, 3) == 4)(rows, 1.0).nonzero(), [[1], [1]]
    )
    np.testing.assert_array_equal(optim.one_hot_rows(1)(rows, 1.0).nonzero(), [[0], [0]])
    with pytest.raises(ValueError, match="preferred: has shape"):
        optim.one_hot(prefer=prefer[:2])(rows, 1.0)


def test_proximal_gradient_solves_a_lasso():
    """The solution satisfies the subgradient condition |A^T (A x - b)| <= strength, with equality off zero."""
    design = jax.random.normal(jax.random.key(0), (20, 8))
    goal = design @ jnp.array([2.0, -1.0, 0, 0, 0, 0, 0, 0])
    rate, strength = 0.02, 3.0
    solver = optim.proximal(optax.sgd(rate), optim.l1(strength), step_size=rate)

    def step(carry, _):
        params, state = carry
        updates, state = solver.update(design.T @ (design @ params - goal), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.zeros(8)
    (params, _), _ = jax.lax.scan(step, (params, solver.init(params)), length=2000)
    slope = design.T @ (design @ params - goal)
    assert float(jnp.abs(slope).max()) <= strength + 1e-3
    np.testing.assert_allclose(slope[params != 0], -strength * jnp.sign(params[params != 0]), atol=1e-3)
    assert 0 < int((params == 0).sum()) < 8


def test_the_step_size_schedule_is_read_at_the_count():
    solver = optim.proximal(
        optax.sgd(0.0), optim.nonnegative_l1(1.0), step_size=lambda count: 0.25 * (count + 1).astype(jnp.float32)
    )
    params, state = jnp.array([2.0]), None
    state = solver.init(params)
    seen = []
    for _ in range(3):
        updates, state = solver.update(jnp.zeros(1), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params[0]))
    assert seen == [1.75, 1.25, 0.5]


def test_extra_arguments_reach_the_inner_transform():
    solver = optim.proximal(optax.polyak_sgd(), optim.box())
    params = jnp.array([0.5, 0.5])
    updates, _ = solver.update(jnp.array([1.0, 0.0]), solver.init(params), params, value=jnp.float32(0.25))
    np.testing.assert_allclose(updates, [-0.25, 0], atol=1e-6)


def test_project_onto_takes_segments_and_whole_leaf_projections():
    segments = (0, 0, 1)
    solver = optim.project_onto(optax.sgd(0.5), lambda p: simplex.project(p, segments=segments))
    params = jnp.array([0.5, 0.5, 1.0])
    updates, _ = solver.update(jnp.array([1.0, 0.0, 9.0]), solver.init(params), params)
    np.testing.assert_allclose(params + updates, [0.25, 0.75, 1], atol=1e-6)

    whole = optim.project_onto(optax.sgd(0.5), optax.projections.projection_l2_ball)
    params = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    updates, _ = whole.update(jnp.zeros((2, 2)), whole.init(params), params)
    np.testing.assert_allclose(jnp.linalg.norm(params + updates), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.box(1.0, 0.0), "box: lower must not exceed upper, got 1.0 and 0.0"),
        (lambda: optim.l1(-1.0), "l1: strength must not be negative"),
        (lambda: optim.nonnegative_l1(-1.0), "nonnegative_l1: strength must not be negative"),
        (lambda: optim.cardinality(0), "cardinality: k must be at least 1"),
        (lambda: optim.one_hot(keep="two"), "one_hot: keep must be 'one' or 'magnitude', got 'two'"),
        (lambda: optim.one_hot_rows(0), "one_hot_rows: k must be at least 1"),
        (lambda: optim.one_hot_rows(2, keep="all"), "one_hot_rows: keep must be"),
        (lambda: optim.one_hot_rows(2)(jnp.ones(3), 1.0), r"one_hot_rows: wants a table \[rows, entries\]"),
    ],
)
def test_operators_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
