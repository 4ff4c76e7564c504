import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax.train.recipe import cosine, ramp, sgd, warmup_linear


@pytest.mark.parametrize(
    ("peak", "floor", "epochs", "values"),
    [
        (0.1, 0.0, 50, {0: 0.1, 24: 0.05314, 25: 0.05, 49: 9.866e-5}),
        (0.025, 0.001, 50, {0: 0.025, 12: 0.021748, 24: 0.013753, 49: 0.001024}),
        (0.025, 0.001, 25, {0: 0.025, 12: 0.013753, 24: 0.001095}),
        (0.1, 0.0, 200, {0: 0.1, 50: 0.08535534, 100: 0.05, 199: 6.1684e-6}),
        (0.025, 0.0, 600, {0: 0.025, 300: 0.0125, 599: 1.7134691e-7}),
    ],
    ids=["PC-DARTS", "NAS-Bench-201, 50 epochs", "NAS-Bench-201, 25 epochs", "retraining, 200 epochs", "CIFAR-10"],
)
def test_cosine_has_the_values_of_the_papers_in_every_step_of_an_epoch(peak, floor, epochs, values):
    schedule = jax.jit(cosine(peak, floor, epochs, 7))
    for epoch, value in values.items():
        # Close to zero, 1 + cos is a small difference of float32 numbers near one.
        for step in (7 * epoch, 7 * epoch + 6):
            np.testing.assert_allclose(schedule(step), value, rtol=4e-4)


def test_after_the_last_stair_the_cosine_stays_on_its_floor():
    schedule = cosine(0.1, 0.01, 10, 3)
    assert float(schedule(29)) > 0.01
    np.testing.assert_allclose([float(schedule(step)) for step in (30, 31, 1000)], 0.01, rtol=1e-6)


def test_a_warm_up_takes_the_place_of_the_first_stairs_of_the_cosine():
    alone, warm = cosine(0.5, 0.001, 50, 7), jax.jit(cosine(0.5, 0.001, 50, 7, warmup=5))
    for epoch, value in {0: 0.1, 1: 0.2, 4: 0.5}.items():
        np.testing.assert_allclose([warm(7 * epoch), warm(7 * epoch + 6)], value, rtol=1e-6)
    steps = np.arange(35, 400)
    np.testing.assert_allclose(warm(steps), alone(steps), rtol=1e-5)


@pytest.mark.parametrize("period", [1, 7])
def test_warmup_linear_has_the_values_of_pc_darts_on_imagenet(period):
    schedule = jax.jit(warmup_linear(0.5, 250, period, ends=5))
    values = {
        0: 0.1,
        4: 0.5,
        5: 0.48979592,
        100: 0.29591837,
        244: 0.00204082,
        245: 0.00204082,
        249: 0.00040816,
        250: 0.0,
    }
    for epoch, value in values.items():
        for step in (period * epoch, period * epoch + period - 1):
            np.testing.assert_allclose(schedule(step), value, rtol=1e-5)
    assert float(schedule(10_000)) == 0


@pytest.mark.parametrize(
    ("periods", "values"),
    [
        (3, [0.1, 0.2, 0.3, 0.0]),
        (5, [0.1, 0.2, 0.3, 0.4, 0.5, 0.0]),
        (7, [0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.05, 0.0]),
    ],
)
def test_a_short_warmup_linear_goes_up_first(periods, values):
    schedule = warmup_linear(0.5, periods, ends=5)
    np.testing.assert_allclose([float(schedule(step)) for step in range(periods + 1)], values, rtol=1e-6)


def test_the_ramp_has_the_values_of_drop_path_on_cifar10():
    schedule = jax.jit(ramp(0.3, 600, 7))
    for epoch, value in {0: 0.0, 300: 0.15, 599: 0.2995, 600: 0.3, 10_000: 0.3}.items():
        for step in (7 * epoch, 7 * epoch + 6):
            np.testing.assert_allclose(schedule(step), value, rtol=1e-6)


def released_sgd(params, grads, rates, momentum, weight_decay, nesterov, clip_norm):
    """SGD of PyTorch after its clip_grad_norm_, one parameter a list entry, in float64."""
    buffers = None
    for gradient, rate in zip(grads, rates, strict=True):
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        factor = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm else 1.0
        decayed = [factor * g + weight_decay * p for g, p in zip(gradient, params, strict=True)]
        buffers = decayed if buffers is None else [momentum * b + g for b, g in zip(buffers, decayed, strict=True)]
        move = [g + momentum * b if nesterov else b for g, b in zip(decayed, buffers, strict=True)]
        params = [p - rate * m for p, m in zip(params, move, strict=True)]
    return params


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 5.0])
def test_sgd_is_that_of_the_papers_code(nesterov, clip_norm):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(3, 2)), rng.normal(size=4)]
    # Norms on both sides of the clip.
    grads = [[size * rng.normal(size=p.shape) for p in start] for size in (0.1, 10.0, 1.0, 30.0, 0.5)]
    schedule = cosine(0.1, 0.0, 5)
    rates = [0.05 * (1 + np.cos(np.pi * i / 5)) for i in range(5)]
    expected = released_sgd(start, grads, rates, 0.9, 0.01, nesterov, clip_norm)

    tx = sgd(schedule, momentum=0.9, weight_decay=0.01, nesterov=nesterov, clip_norm=clip_norm)
    params = [jnp.asarray(p, jnp.float32) for p in start]
    state = tx.init(params)
    for gradient in grads:
        updates, state = tx.update([jnp.asarray(g, jnp.float32) for g in gradient], state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(params, [p.astype(np.float32) for p in expected], rtol=2e-5, atol=1e-6)
