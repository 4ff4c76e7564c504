"""Every transform against every property an Optax user relies on.

A row of ``TRANSFORMS`` is a transform, a test function is a property; each pair is one test, so that
``pytest --collect-only -q tests/optim/test_matrix.py`` counts the matrix.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax import optim, simplex

ROWS = 8
SEGMENTS = (0, 0, 1, 1)


class Case(NamedTuple):
    """A transform, a feasible start, and what it should do.

    ``make`` takes the learning rate (of a proximal operator, the step size). ``goal`` maps the target of a
    quadratic loss to the point the transform must find. ``violation`` says how far a leaf is from its set.
    """

    make: Callable[[Any], optax.GradientTransformationExtraArgs]
    start: tuple[float, ...]
    target: tuple[float, ...]
    violation: Callable[[jax.Array], jax.Array] | None = None
    goal: Callable[[jax.Array], jax.Array] = lambda target: target
    rate: float = 0.5
    still: bool = True  # a feasible point with no gradient stays where it is
    blocks: bool = False  # the parameters are {"weights": ..., "arch": ...}


def off_simplex(segments=None):
    def violation(point):
        uniform = simplex.uniform_like(point, segments=segments)
        scaled = simplex.normalise(point, segments=segments)
        return jnp.maximum(jnp.max(jnp.abs(point - scaled) * uniform), jnp.max(-point))

    return violation


def off_box(point):
    return jnp.maximum(jnp.max(point - 1), jnp.max(-point))


def too_many(k):
    return lambda point: jnp.max(jnp.sum(point != 0, axis=-1)).astype(jnp.float32) - k


def soft(cut):
    return lambda target: jnp.sign(target) * jnp.maximum(jnp.abs(target) - cut, 0)


def sgd(prox, **options):
    return lambda rate: optim.proximal(optax.sgd(0.5), prox, step_size=rate, **options)


DISTRIBUTION = (0.5, 0.25, 0.125, 0.125)  # exact in bfloat16
PAIRS = (0.75, 0.25, 0.5, 0.5)
SIMPLEX = {"start": DISTRIBUTION, "target": (0.1, 0.2, 0.3, 0.4), "violation": off_simplex()}
SEGMENTED = {"start": PAIRS, "target": (0.4, 0.6, 0.3, 0.7), "violation": off_simplex(SEGMENTS)}

TRANSFORMS = {
    "exponentiated_gradient": Case(optim.exponentiated_gradient, **SIMPLEX),
    "exponentiated_gradient_floor": Case(lambda rate: optim.exponentiated_gradient(rate, min_prob=1e-3), **SIMPLEX),
    "exponentiated_gradient_release": Case(
        lambda rate: optim.exponentiated_gradient(rate, min_prob=1e-5, clamp="release"), **SIMPLEX
    ),
    "exponentiated_gradient_segments": Case(
        lambda rate: optim.exponentiated_gradient(rate, segments=SEGMENTS), **SEGMENTED
    ),
    "mirror_euclidean": Case(lambda rate: optim.mirror_descent(rate, optim.euclidean()), **SIMPLEX),
    "mirror_euclidean_segments": Case(
        lambda rate: optim.mirror_descent(rate, optim.euclidean(), segments=SEGMENTS), **SEGMENTED
    ),
    "proximal_box": Case(
        lambda rate: optim.proximal(optax.sgd(rate, momentum=0.5), optim.box()),
        start=DISTRIBUTION,
        target=(-1.0, 0.25, 0.75, 2.0),
        violation=off_box,
        goal=lambda target: jnp.clip(target, 0, 1),
    ),
    "proximal_l1": Case(sgd(optim.l1(0.5)), DISTRIBUTION, (-1.0, 0.25, 0.75, 2.0), goal=soft(0.5), still=False),
    "proximal_nonnegative_l1": Case(
        sgd(optim.nonnegative_l1(0.5)),
        start=DISTRIBUTION,
        target=(-1.0, 0.25, 0.75, 2.0),
        violation=lambda point: jnp.max(-point),
        goal=lambda target: jnp.maximum(target - 0.5, 0),
        still=False,
    ),
    "proximal_cardinality": Case(
        sgd(optim.cardinality(2)),
        (1.0, 0.0, -0.5, 0.0),
        (0.0, -1.5, 0.0, 2.0),
        violation=too_many(2),
        rate=1.0,
    ),
    "proximal_one_hot": Case(
        lambda rate: optim.proximal(optax.sgd(rate), optim.one_hot()),
        start=(1.0, 0.0, 0.0, 0.0),
        target=(0.0, 0.0, 1.0, 0.0),
        violation=lambda point: jnp.maximum(too_many(1)(point), jnp.max(jnp.abs(jnp.sum(point, -1) - 1))),
        rate=0.75,
    ),
    "freeze_inactive": Case(
        lambda rate: optim.freeze_inactive(optim.proximal(optax.sgd(rate, momentum=0.5), optim.box())),
        start=DISTRIBUTION,
        target=(-1.0, 0.25, 0.75, 2.0),
        violation=off_box,
        goal=lambda target: jnp.clip(target, 0, 1),
    ),
    "project_onto_simplex": Case(lambda rate: optim.project_onto(optax.sgd(rate), simplex.project), **SIMPLEX),
    "search_optimizer": Case(
        lambda rate: optim.search_optimizer(
            weights=optim.proximal(optax.sgd(rate, momentum=0.5), optim.box()),
            arch=optim.exponentiated_gradient(rate),
        ),
        blocks=True,
        **SIMPLEX,
    ),
}


def every_transform(test=None, *, where=lambda case: True):
    """Parametrises a property over the transforms for which it means something."""
    if test is None:
        return lambda test: every_transform(test, where=where)
    cases = [pytest.param(case, id=name) for name, case in TRANSFORMS.items() if where(case)]
    return pytest.mark.parametrize("case", cases)(test)


def tree(case, row, dtype=jnp.float32):
    """Two leaves of ``ROWS`` equal rows, as {"normal", "reduce"} or as the two blocks of a search."""
    leaf = jnp.broadcast_to(jnp.asarray(row, dtype), (ROWS, len(row)))
    return {"weights": {"w": leaf}, "arch": {"a": leaf}} if case.blocks else {"normal": leaf, "reduce": leaf}


def gradients(params):
    """Different in every entry, the same for every transform."""
    return jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size).astype(p.dtype)).reshape(p.shape), params)


@functools.cache
def setup(case, dtype="float32"):
    """A solver with its update compiled, a feasible start, its state and a gradient; made once a case."""
    solver, params = case.make(0.25), tree(case, case.start, dtype)
    compiled = optax.GradientTransformationExtraArgs(solver.init, jax.jit(solver.update))
    return compiled, params, solver.init(params), gradients(params)


@every_transform
def test_is_a_transform_with_extra_args_and_ignores_unknown_ones(case):
    solver, params, state, grads = setup(case)
    assert isinstance(case.make(0.25), optax.GradientTransformationExtraArgs)
    plain = solver.update(grads, state, params)
    chex.assert_trees_all_equal(plain, solver.update(grads, state, params, nobody_asked_for_this=1))


@every_transform
def test_names_itself_when_params_are_missing(case):
    solver, _, state, grads = setup(case)
    with pytest.raises(ValueError, match=r"^(mirror descent|proximal|search optimizer): update needs the"):
        solver.update(grads, state)


@every_transform(where=lambda case: case.violation is not None)
def test_every_iterate_is_feasible(case):
    solver, params, state, _ = setup(case)

    def step(carry, key):
        params, state = carry
        grads = jax.tree.map(lambda p: 5 * jax.random.normal(key, p.shape, p.dtype), params)
        updates, state = solver.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.stack(
            [case.violation(leaf) for leaf in jax.tree.leaves(params["arch" if case.blocks else "normal"])]
        )

    _, violations = jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(0), 50))
    assert float(violations.max()) <= 1e-6


@every_transform
def test_finds_the_minimum_of_a_quadratic(case):
    solver, params, target = case.make(case.rate), tree(case, case.start), tree(case, case.target)

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.subtract, params, target)
        updates, state = solver.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, solver.init(params)), length=400)
    chex.assert_trees_all_close(params, jax.tree.map(case.goal, target), atol=1e-4)


@every_transform
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_keeps_the_dtype(case, dtype):
    solver, params, state, grads = setup(case, dtype)
    updates, _ = jax.eval_shape(solver.update, grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@every_transform
def test_keeps_float64_and_agrees_with_float32(case, x64):
    results = []
    for dtype in (jnp.float32, jnp.float64):
        solver, params, state, grads = setup(case, dtype)
        updates, _ = solver.update(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        results.append(jax.tree.map(lambda u: u.astype(jnp.float32), updates))
    chex.assert_trees_all_close(*results, atol=1e-6)


@every_transform
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_state_keeps_its_structure_and_types(case, dtype):
    solver, params, state, grads = setup(case, dtype)
    _, after = jax.eval_shape(solver.update, grads, state, params)
    chex.assert_trees_all_equal_structs(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, jax.eval_shape(lambda: state))


@every_transform
def test_does_not_recompile_and_jit_agrees_with_eager(case):
    _, params, state, grads = setup(case)
    solver, traces = case.make(0.25), []

    @jax.jit
    def step(grads, state, params):
        traces.append(1)
        return solver.update(grads, state, params)

    updates, after = step(grads, state, params)
    step(grads, after, optax.apply_updates(params, updates))
    assert len(traces) == 1
    chex.assert_trees_all_close(updates, solver.update(grads, state, params)[0], atol=1e-6)


@every_transform
def test_vmap_over_points_agrees_with_a_loop(case):
    solver, params, state, grads = setup(case)
    looped = [solver.update(grads, state, params)[0]]
    start = optax.apply_updates(params, looped[0])
    looped.append(solver.update(grads, state, start)[0])

    @jax.jit
    def together(params, grads):
        return jax.vmap(lambda p: solver.update(grads, solver.init(p), p)[0])(params)

    both = together(jax.tree.map(lambda *p: jnp.stack(p), params, start), grads)
    chex.assert_trees_all_close(both, jax.tree.map(lambda *u: jnp.stack(u), *looped), atol=1e-6)


@every_transform
def test_a_constant_schedule_equals_the_scalar(case):
    solver, params, state, grads = setup(case)
    expected, _ = solver.update(grads, state, params)
    scheduled = case.make(optax.constant_schedule(0.25))
    updates, _ = jax.jit(scheduled.update)(grads, scheduled.init(params), params)
    chex.assert_trees_all_equal(updates, expected)


@every_transform
def test_inject_hyperparams_equals_the_plain_transform(case):
    solver, params, state, grads = setup(case)
    injected = optax.inject_hyperparams(lambda learning_rate: case.make(learning_rate))(0.25)
    updates, after = jax.jit(injected.update)(grads, injected.init(params), params)
    expected, _ = solver.update(grads, state, params)
    chex.assert_trees_all_close(updates, expected, atol=1e-7)
    assert float(after.hyperparams["learning_rate"]) == 0.25


@every_transform
def test_vmap_over_an_injected_learning_rate(case):
    _, params, _, grads = setup(case)
    rates = jnp.array([0.125, 0.25])

    def one(rate):
        injected = optax.inject_hyperparams(lambda learning_rate: case.make(learning_rate))(rate)
        return injected.update(grads, injected.init(params), params)[0]

    both = jax.jit(jax.vmap(one))(rates)
    solver, _, state, _ = setup(case)
    expected, _ = solver.update(grads, state, params)
    chex.assert_trees_all_close(jax.tree.map(lambda u: u[1], both), expected, atol=1e-6)


def first_leaf_only(params):
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [i == 0 for i in range(len(leaves))])


@every_transform
def test_masked_leaves_pass_through(case):
    solver, params, state, grads = setup(case)
    mask = first_leaf_only(params)
    masked = optax.masked(solver, mask)
    updates, _ = jax.jit(masked.update)(grads, masked.init(params), params)
    alone, _ = solver.update(grads, state, params)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.where, mask, alone, grads), atol=1e-7)


@every_transform
def test_partition_freezes_the_other_leaves(case):
    solver, params, state, grads = setup(case)
    mask = first_leaf_only(params)
    labels = jax.tree.map(lambda on: "move" if on else "freeze", mask)
    parted = optax.partition({"move": solver, "freeze": optax.set_to_zero()}, labels)
    updates, _ = jax.jit(parted.update)(grads, parted.init(params), params)
    alone, _ = solver.update(grads, state, params)
    expected = jax.tree.map(lambda on, u: u if on else jnp.zeros_like(u), mask, alone)
    chex.assert_trees_all_close(updates, expected, atol=1e-7)


@every_transform
def test_multi_steps_waits_then_steps_on_the_mean(case):
    solver, params, state, grads = setup(case)
    every = optax.MultiSteps(solver, every_k_schedule=2)
    update = jax.jit(every.update)
    double = jax.tree.map(lambda g: 2 * g, grads)
    none = jax.tree.map(jnp.zeros_like, grads)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps itself divides by an integer
        waiting, kept = update(double, every.init(params), params)
        updates, _ = update(none, kept, params)
    chex.assert_trees_all_equal(waiting, none)
    chex.assert_trees_all_close(updates, solver.update(grads, state, params)[0], atol=1e-6)


@every_transform
def test_apply_if_finite_skips_a_nan(case):
    solver, params, _, grads = setup(case)
    guarded = optax.apply_if_finite(solver, max_consecutive_errors=3)
    state = guarded.init(params)
    update = jax.jit(guarded.update)
    broken = jax.tree.map(lambda g: g.at[0, 0].set(jnp.nan), grads)
    updates, state = update(broken, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    updates, _ = update(grads, state, params)
    chex.assert_tree_all_finite(updates)


@every_transform(where=lambda case: case.make is not TRANSFORMS["proximal_one_hot"].make)
def test_a_nan_gradient_is_not_hidden(case):
    solver, params, state, grads = setup(case)
    broken = jax.tree.map(lambda g: g.at[0, 0].set(jnp.nan), grads)
    updates, _ = solver.update(broken, state, params)
    assert all(bool(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(updates))


@every_transform
def test_none_leaves_are_tolerated(case):
    solver, params, _, grads = setup(case)

    def with_hole(tree):
        return {name: {"leaf": part, "hole": None} for name, part in tree.items()}

    params, grads = with_hole(params), with_hole(grads)
    updates, _ = solver.update(grads, solver.init(params), params)
    chex.assert_trees_all_equal_structs(updates, params)
    optax.apply_updates(params, updates)


@every_transform(where=lambda case: case.still)
def test_no_gradient_is_no_move(case):
    solver, params, state, grads = setup(case)
    updates, _ = solver.update(jax.tree.map(jnp.zeros_like, grads), state, params)
    chex.assert_trees_all_close(updates, jax.tree.map(jnp.zeros_like, params), atol=2e-7)


@every_transform
def test_init_accepts_abstract_values(case):
    solver, params, state, _ = setup(case)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(solver.init, shapes), state)
    chex.assert_trees_all_equal_structs(solver.init(shapes), state)


@every_transform
def test_map_params_finds_the_leaves_that_mirror_params(case):
    solver, _, state, _ = setup(case)
    chex.assert_trees_all_equal(optax.tree.map_params(solver, lambda leaf: leaf, state), state)


@every_transform
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_rows_step_as_on_one_device(case, kind):
    solver, params, state, grads = setup(case)
    expected, _ = solver.update(grads, state, params)
    mesh = jax.make_mesh((ROWS,), ("rows",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("rows", None))
        params, grads = jax.device_put((params, grads), split)
        before = solver.init(params)
        updates, after = solver.update(grads, before, params)
        for leaf in jax.tree.leaves(updates):
            assert leaf.sharding.is_equivalent_to(split, leaf.ndim)
        chex.assert_trees_all_equal(jax.tree.map(jax.typeof, after), jax.tree.map(jax.typeof, before))
    chex.assert_trees_all_close(*jax.tree.map(np.asarray, (updates, expected)), atol=1e-6)
