import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax.methods import darts
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO, NASBench201


@pytest.mark.parametrize("space", [NAS_BENCH_201, NAS_BENCH_201_NOZERO])
def test_starts_near_uniform(space: NASBench201) -> None:
    method = darts()
    logits = jnp.stack([method.init(space, key)["cell"] for key in jax.random.split(jax.random.key(0), 50)])
    # The deviation of n draws has a standard error of 1 / sqrt(2 n), here of 2 %.
    chex.assert_trees_all_close(logits.std(), 1e-3, rtol=0.1)
    chex.assert_trees_all_close(logits.mean(), 0.0, atol=2e-4)
    assert len(np.unique(logits)) > 0.99 * logits.size
    weights = method.weights(space, {"cell": logits[0]})["cell"]
    width = len(space.operations)
    chex.assert_trees_all_close(weights, jnp.full((6, width), 1 / width), atol=2e-3)


def test_the_weights_are_the_softmax_of_each_row() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    weights = darts().weights(NAS_BENCH_201, {"cell": jnp.asarray(logits)})["cell"]
    chex.assert_trees_all_close(weights, np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "rate", "decay", "clip"),
    [({}, 3e-4, 1e-3, None), ({"learning_rate": 0.1, "weight_decay": 0.3, "clip_norm": 1.0}, 0.1, 0.3, 1.0)],
)
def test_adam_with_the_decay_in_the_gradient(options: dict, rate: float, decay: float, clip: float | None) -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 5)).astype(np.float32)
    gradients = rng.normal(size=(5, 6, 5)).astype(np.float32)

    expected, first, second = start.astype(np.float64), np.zeros((6, 5)), np.zeros((6, 5))
    for step, gradient in enumerate(gradients.astype(np.float64), start=1):
        if clip is not None:
            gradient = gradient * min(1.0, clip / np.linalg.norm(gradient))
        gradient = gradient + decay * expected
        first = 0.5 * first + 0.5 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected -= rate * (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)

    optimizer = darts(**options).optimizer(NAS_BENCH_201)
    arch = {"cell": jnp.asarray(start)}
    state = optimizer.init(arch)
    for gradient in gradients:
        updates, state = optimizer.update({"cell": jnp.asarray(gradient)}, state, arch)
        arch = optax.apply_updates(arch, updates)
    chex.assert_trees_all_close(np.float64(arch["cell"]) - start, expected - start, atol=1e-3 * rate)
