"""Mirror descent and exponentiated gradient: published numbers, closed forms, long runs, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gaea_jax import optim, simplex

SLOPE = (1.0, 0.0, 0.5, -1.0)
EDGES = (0,) * 2 + (1,) * 3 + (2,) * 4 + (3,) * 5

slopes = hnp.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32))
points = hnp.arrays(np.float32, (3, 4), elements=st.floats(0.0625, 1, width=32)).map(
    lambda table: table / table.sum(-1, keepdims=True)
)
few = settings(max_examples=25, deadline=None)


def run(solver, params, grads, steps):
    """Steps along a constant gradient."""

    def step(carry, _):
        params, state = carry
        updates, state = solver.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, solver.init(params)), length=steps)[0][0]


def one_step(solver, params, grads):
    return run(solver, jnp.asarray(params), jnp.asarray(grads), 1)


EG, PGD = optim.exponentiated_gradient(0.5), optim.mirror_descent(0.5, optim.euclidean())
whole_simplex = jax.jit(optax.projections.projection_simplex)
eg_step, pgd_step = jax.jit(lambda p, g: one_step(EG, p, g)), jax.jit(lambda p, g: one_step(PGD, p, g))


class TestPublishedNumbers:
    """Values computed with the released code (float64)."""

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            (1, [0.22842290029470, 0.25244634642820, 0.24013439283020, 0.27899636044690]),
            (10, [0.07839411721684, 0.21309730428862, 0.12925004855316, 0.57925852952994]),
        ],
    )
    @pytest.mark.parametrize("clamp", ["shift-invariant", "release"])
    def test_the_unclamped_step(self, x64, steps, expected, clamp):
        solver = optim.exponentiated_gradient(0.1, clamp=clamp)
        actual = run(solver, jnp.full(4, 0.25), jnp.array(SLOPE), steps)
        np.testing.assert_allclose(actual, expected, rtol=1e-9)

    def test_ten_steps_are_a_softmax(self, x64):
        actual = run(optim.exponentiated_gradient(0.1), jnp.full(4, 0.25), jnp.array(SLOPE), 10)
        np.testing.assert_allclose(actual, jax.nn.softmax(-jnp.array(SLOPE)), rtol=1e-12)

    def test_the_released_clamp(self, x64):
        solver = optim.exponentiated_gradient(1.0, min_prob=1e-5, clamp="release")
        actual = run(solver, jnp.full(4, 0.25), jnp.array(SLOPE), 1000)
        np.testing.assert_allclose(actual, [3.6787944e-06] * 3 + [0.99998896362], rtol=1e-7)
        np.testing.assert_allclose(actual.sum(), 1, rtol=1e-14)
        np.testing.assert_allclose(simplex.entropy(actual), 1.4913e-4, rtol=1e-4)

    def test_edge_weights_move_node_by_node(self, x64):
        solver = optim.exponentiated_gradient(0.1, segments=EDGES)
        start = simplex.uniform_like(jnp.zeros(14), segments=EDGES)
        actual = run(solver, start, jnp.arange(14) / 10, 1)
        expected = [0.50249998, 0.49750002, 0.33667217, 0.33332222, 0.33000561]
        expected += [0.25376241, 0.25123743, 0.24873757, 0.24626259]
        expected += [0.20401987, 0.20198983, 0.19998000, 0.19799017, 0.19602013]
        np.testing.assert_allclose(actual, expected, atol=6e-9)
        np.testing.assert_allclose(actual.sum(), 4, rtol=1e-14)

    def test_the_euclidean_step(self, x64):
        actual = run(optim.mirror_descent(0.1, optim.euclidean()), jnp.full(4, 0.25), jnp.array(SLOPE), 1)
        np.testing.assert_allclose(actual, [0.1625, 0.2625, 0.2125, 0.3625], rtol=1e-12)


class TestClosedForms:
    @few
    @given(points, slopes)
    def test_exponentiated_gradient_is_multiplicative_weights(self, point, slope):
        product = point.astype(np.float64) * np.exp(-0.5 * slope.astype(np.float64))
        np.testing.assert_allclose(
            eg_step(point, slope), product / product.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7
        )

    @few
    @given(points, slopes)
    def test_the_euclidean_step_projects_each_row(self, point, slope):
        with jax.numpy_dtype_promotion("standard"):  # Optax's projection divides by an integer
            expected = [whole_simplex(row) for row in point - 0.5 * slope]
        np.testing.assert_allclose(pgd_step(point, slope), jnp.stack(expected), atol=1e-5)

    @few
    @given(points, slopes, st.floats(-10, 10, width=32))
    def test_a_constant_added_to_a_row_changes_nothing(self, point, slope, constant):
        shifted = slope + np.array([[constant], [0], [-constant]], np.float32)
        for step in (eg_step, pgd_step):
            np.testing.assert_allclose(step(point, shifted), step(point, slope), atol=1e-5)

    @few
    @given(points, slopes, st.permutations(range(4)))
    def test_permuting_the_options_commutes(self, point, slope, order):
        for step in (eg_step, pgd_step):
            np.testing.assert_allclose(
                step(point[:, order], slope[:, order]), step(point, slope)[:, np.asarray(order)], atol=1e-6
            )

    def test_a_constant_added_to_a_row_changes_nothing_with_a_floor(self):
        solver = optim.exponentiated_gradient(1.0, min_prob=1e-2)
        point, slope = jnp.array([0.7, 0.2, 0.1]), jnp.array([-1.0, 5.0, 7.0])
        expected = one_step(solver, point, slope)
        assert float(expected.min()) == pytest.approx(1e-2 / 1.02, rel=1e-2)
        np.testing.assert_allclose(one_step(solver, point, slope + 30), expected, atol=1e-6)

    @pytest.mark.parametrize("steps", [1, 20])
    def test_exponentiated_gradient_is_entropic_mirror_descent(self, steps):
        point, slope = jnp.full((2, 4), 0.25), jnp.array([SLOPE, SLOPE[::-1]])
        for floor in (0.0, 1e-3):
            chex.assert_trees_all_equal(
                run(optim.exponentiated_gradient(0.5, min_prob=floor), point, slope, steps),
                run(optim.mirror_descent(0.5, optim.entropic(floor)), point, slope, steps),
            )

    def test_axis_and_segments_describe_the_same_rows(self):
        point, slope = jnp.array([[0.3, 0.6], [0.7, 0.4]]), jnp.array([[1.0, -1.0], [0.5, 2.0]])
        by_axis = one_step(optim.exponentiated_gradient(0.5, axis=0), point, slope)
        flat = one_step(optim.exponentiated_gradient(0.5, segments=(0, 1, 0, 1)), point.reshape(4), slope.reshape(4))
        chex.assert_trees_all_close(by_axis.reshape(4), flat, atol=1e-7)


class TestLongRuns:
    @pytest.mark.parametrize("geometry", [optim.entropic(), optim.entropic(1e-5), optim.euclidean()])
    def test_row_sums_do_not_drift_in_float32(self, geometry, capsys):
        solver = optim.mirror_descent(0.1, geometry)
        params = jnp.full((6, 5), 0.2)

        def step(carry, key):
            params, state = carry
            grads = jax.random.normal(key, params.shape)
            updates, state = solver.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            off = jnp.maximum(jnp.max(jnp.abs(jnp.sum(params, axis=-1) - 1)), jnp.max(-params))
            return (params, state), off

        @jax.jit
        def everything():
            keys = jax.random.split(jax.random.key(0), 100_000)
            return jax.lax.scan(step, (params, solver.init(params)), keys)[1].max()

        worst = float(everything())
        with capsys.disabled():
            print(f"\nlargest deviation from the simplex in 100,000 float32 steps: {worst:.2e}")
        assert worst < 1e-6

    def test_a_linear_loss_ends_at_its_vertex(self):
        cost = jnp.array([[0.3, 0.1, 0.2], [0.0, 0.5, 0.4]])
        for solver in (EG, PGD, optim.exponentiated_gradient(0.5, min_prob=1e-5)):
            final = run(solver, jnp.full((2, 3), 1 / 3), cost, 2000)
            np.testing.assert_allclose(final, jax.nn.one_hot(cost.argmin(-1), 3), atol=3e-5)

    def test_float32_follows_float64(self, x64):
        finals = []
        for dtype in (jnp.float32, jnp.float64):
            target = jnp.array([0.5, 0.3, 0.15, 0.05], dtype)
            params = jnp.full(4, 0.25, dtype)

            def step(carry, _, target=target):
                params, state = carry
                updates, state = EG.update(params - target, state, params)
                return (optax.apply_updates(params, updates), state), None

            finals.append(jax.lax.scan(step, (params, EG.init(params)), length=50)[0][0])
        np.testing.assert_allclose(*finals, atol=1e-6)

    def test_gradients_of_any_size_are_safe(self):
        point = one_step(optim.exponentiated_gradient(1.0), jnp.full(3, 1 / 3), jnp.array([1e30, 0.0, -1e30]))
        np.testing.assert_array_equal(point, [0, 0, 1])

    def test_the_floor_lets_a_lost_entry_return(self):
        start, away, back = jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.array([1.0, 0.0])
        lost = optim.exponentiated_gradient(1.0)
        kept = optim.exponentiated_gradient(1.0, min_prob=1e-5)
        np.testing.assert_array_equal(run(lost, start, back, 30), [1, 0])
        np.testing.assert_allclose(run(kept, run(kept, start, away, 1), back, 30), [0, 1], atol=2e-5)


@few
@given(hnp.arrays(np.float32, (40, 8), elements=st.floats(-1, 1, width=32)))
def test_regret_stays_below_the_bound(losses):
    """Regret of EG with step sqrt(2 ln k / T) for losses in [-1, 1] is at most sqrt(2 T ln k)."""
    rounds, k = losses.shape
    regret = _regret(jnp.asarray(losses))
    assert float(regret) <= np.sqrt(2 * rounds * np.log(k)) + 1e-3


@jax.jit
def _regret(losses):
    rounds, k = losses.shape
    solver = optim.exponentiated_gradient(float(np.sqrt(2 * np.log(k) / rounds)))
    params = jnp.full(k, 1 / k)

    def step(carry, loss):
        params, state = carry
        updates, state = solver.update(loss, state, params)
        return (optax.apply_updates(params, updates), state), params @ loss

    _, paid = jax.lax.scan(step, (params, solver.init(params)), losses)
    return jnp.sum(paid) - jnp.min(jnp.sum(losses, axis=0))


PARAMS = {"ops": jnp.full((2, 4), 0.25), "edges": jnp.array([0.5, 0.5, 1.0]), "list": [jnp.full(2, 0.5)]}


class TestTrees:
    def test_segments_are_a_prefix_of_the_parameters(self):
        solver = optim.exponentiated_gradient(0.5, segments={"ops": None, "edges": (0, 0, 1), "list": None})
        grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)
        moved = optax.apply_updates(PARAMS, solver.update(grads, solver.init(PARAMS), PARAMS)[0])
        np.testing.assert_allclose(moved["edges"][:2].sum(), 1, atol=1e-6)
        np.testing.assert_allclose(moved["edges"][2], 1, atol=1e-6)
        np.testing.assert_allclose(moved["ops"].sum(-1), 1, atol=1e-6)

    def test_one_sequence_serves_every_leaf(self):
        solver = optim.exponentiated_gradient(0.5, segments=np.array([0, 0, 1]))
        params = {"normal": jnp.array([0.5, 0.5, 1.0]), "reduce": jnp.array([0.25, 0.75, 1.0])}
        updates, _ = solver.update(params, solver.init(params), params)
        np.testing.assert_array_equal(updates["normal"][2], 0)

    def test_a_tree_that_does_not_fit_is_refused(self):
        solver = optim.exponentiated_gradient(0.5, segments={"edges": (0, 0, 1)})
        with pytest.raises(ValueError, match="segments must be integer ids, or a prefix of the parameter tree"):
            solver.init(PARAMS)

    def test_a_missing_gradient_moves_nothing(self):
        params = {"a": jnp.full(2, 0.5), "b": jnp.full(2, 0.5)}
        updates, _ = EG.update({"a": jnp.array([1.0, 0.0]), "b": None}, EG.init(params), params)
        np.testing.assert_array_equal(updates["b"], 0)
        assert float(updates["a"][0]) < 0


class TestInputs:
    @pytest.mark.parametrize("solver", [EG, PGD, optim.exponentiated_gradient(0.5, min_prob=1e-5, clamp="release")])
    def test_a_start_off_the_simplex_is_refused(self, solver):
        with pytest.raises(ValueError, match=r"mirror descent: params\['normal'\]: row 1 sums to 1\.2"):
            solver.init({"normal": jnp.array([[0.5, 0.5], [0.6, 0.6]])})

    def test_traced_starts_are_not_looked_at(self):
        jax.jit(EG.init)(jnp.array([2.0, 2.0]))

    @pytest.mark.parametrize("floor", [-1e-3, 1.0])
    @pytest.mark.parametrize("clamp", ["shift-invariant", "release"])
    def test_a_floor_outside_the_unit_interval_is_refused(self, floor, clamp):
        with pytest.raises(ValueError, match="min_prob: need a number from 0 up to 1"):
            optim.exponentiated_gradient(0.1, min_prob=floor, clamp=clamp)

    def test_an_unknown_clamp_is_refused(self):
        with pytest.raises(ValueError, match="clamp: need 'shift-invariant' or 'release', got 'none'"):
            optim.exponentiated_gradient(0.1, clamp="none")

    def test_a_schedule_is_read_at_the_count(self):
        solver = optim.exponentiated_gradient(lambda count: jnp.where(count == 0, 0.0, 0.1))
        params, grads = jnp.full(4, 0.25), jnp.array(SLOPE)
        np.testing.assert_allclose(
            run(solver, params, grads, 2), one_step(optim.exponentiated_gradient(0.1), params, grads), rtol=1e-6
        )


class TestInjectedHyperparameters:
    def test_learning_rate_and_floor_are_traced_with_no_static_arguments(self):
        params, grads = jnp.full(4, 0.25), jnp.array(SLOPE)
        injected = optax.inject_hyperparams(optim.exponentiated_gradient)(5.0, min_prob=1e-2)
        state = jax.jit(injected.init)(params)
        updates, state = jax.jit(injected.update)(grads, state, params)
        expected = one_step(optim.exponentiated_gradient(5.0, min_prob=1e-2), params, grads)
        np.testing.assert_allclose(params + updates, expected, rtol=1e-5)
        state.hyperparams["min_prob"] = jnp.float32(0.0)
        updates, _ = jax.jit(injected.update)(grads, state, params)
        np.testing.assert_allclose(
            params + updates, one_step(optim.exponentiated_gradient(5.0), params, grads), atol=1e-6
        )

    def test_the_geometry_of_mirror_descent_needs_no_static_arguments(self):
        injected = optax.inject_hyperparams(optim.mirror_descent)(0.5, optim.euclidean())
        params, grads = jnp.full(4, 0.25), jnp.array(SLOPE)
        updates, _ = jax.jit(injected.update)(grads, injected.init(params), params)
        np.testing.assert_allclose(params + updates, pgd_step(params, grads), atol=1e-7)

    def test_another_axis_has_to_be_static(self):
        params = jnp.full((2, 3), 0.5)
        with pytest.raises(ValueError, match=r"static_args=\('axis',\)"):
            optax.inject_hyperparams(optim.exponentiated_gradient)(0.1, axis=0).init(params)
        factory = optax.inject_hyperparams(optim.exponentiated_gradient, static_args=("axis",))
        solver = factory(0.1, axis=0)
        updates, _ = jax.jit(solver.update)(params, solver.init(params), params)
        np.testing.assert_allclose(updates, 0, atol=1e-7)
