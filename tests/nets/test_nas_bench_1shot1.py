from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture, supernet
from gaea_jax.nets.lowering import max_pool
from gaea_jax.nets.nas_bench_1shot1 import ChoiceBlock, ChoiceCell
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_1, SPACE_2, SPACE_3, NASBench1Shot1

RNG = np.random.default_rng(0)


def mixture_of(space: NASBench1Shot1) -> Mixture:
    """A random point of the simplices."""
    tables = {name: jnp.asarray(RNG.uniform(0.1, 1, c.shape), jnp.float32) for name, c in space.choices.items()}
    return Mixture(tables)


@pytest.mark.parametrize(
    ("space", "partial", "parameters"),
    [
        (SPACE_1, 1, 1_009_530),
        (SPACE_2, 1, 1_009_530),
        (SPACE_3, 1, 1_323_610),
        (SPACE_1, 4, 400_698),
        (SPACE_2, 4, 400_698),
        (SPACE_3, 4, 562_570),
    ],
)
def test_parameters_are_those_of_the_released_supernets(space: NASBench1Shot1, partial: int, parameters: int) -> None:
    net = supernet(space, channels=16, cells=9, num_classes=10, partial=partial)
    x = jnp.zeros((2, 32, 32, 3))
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, mixture_of(space), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


def conv_norm_relu(variables: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution, its running statistics and ReLU, in NumPy."""
    params, stats = (variables[kind]["linear"] for kind in ("params", "batch_stats"))
    x = x @ np.asarray(params["conv"]["kernel"])[0, 0]
    norm, running = params["norm"], stats["norm"]
    x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
    return np.maximum(x, 0)


def part(variables: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        variables = {kind: tables[name] for kind, tables in variables.items() if name in tables}
    return variables


def test_a_cell_reads_mixtures_and_joins_all_nodes(draw: Callable) -> None:
    """Space 1, whose second block reads the input and the first as they are; of the operations only the 1x1 convolution
    weighs."""
    cell = ChoiceCell(SPACE_1, 4, 1, jnp.float32)
    x = jnp.asarray(RNG.normal(size=(2, 5, 5, 3)), jnp.float32)
    mixture = mixture_of(SPACE_1)
    mixture = Mixture({**mixture.weights, "operations": jnp.array([[0, 0, 2.0]] * 4)})
    variables = draw(cell, x, mixture)
    projected = [conv_norm_relu(part(variables, f"input_{n}"), np.asarray(x)) for n in (1, 2, 3, 4, "output")]
    inputs = [np.asarray(w) for w in (jnp.ones(1), jnp.ones(2), *jnp.split(mixture.weights["inputs"], [3]))]
    blocks: list[np.ndarray] = []
    for number, weights in enumerate(inputs):
        total = sum(w * node for w, node in zip(weights, [projected[number], *blocks], strict=True))
        blocks.append(2 * conv_norm_relu(part(variables, f"block_{number + 1}", "conv1x1-bn-relu"), total))
    nodes = zip(np.asarray(mixture.weights["output"][0]), [projected[-1], *blocks], strict=True)
    expected = np.concatenate([weight * node for weight, node in nodes], axis=-1)
    np.testing.assert_allclose(cell.apply(variables, x, mixture, False), expected, rtol=2e-4, atol=2e-4)


def test_channels_that_pass_by_are_interleaved(draw: Callable) -> None:
    block = ChoiceBlock(4, jnp.float32)
    x = jnp.asarray(RNG.normal(size=(2, 5, 5, 8)), jnp.float32)
    weights = jnp.array([1.0, 0.0, 0.0])
    variables = draw(block, x, weights, None)
    out = block.apply(variables, x, weights, None, False)
    assert out.shape == x.shape
    # Channels 0 and 1 go through the block; of four groups of two each gives every fourth channel.
    np.testing.assert_array_equal(out[..., [1, 2, 3, 5, 6, 7]], x[..., [2, 4, 6, 3, 5, 7]])
    np.testing.assert_array_equal(out[..., [0, 4]], max_pool(x[..., :2], 3, 1))


@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("train", [False, True])
def test_what_is_active_computes_what_the_dense_supernet_computes(draw: Callable, partial: int, train: bool) -> None:
    net = supernet(SPACE_2, channels=4, cells=3, num_classes=10, partial=partial)
    x = jnp.asarray(RNG.normal(size=(4, 9, 9, 3)), jnp.float32)
    derived = Mixture.derived(SPACE_2.encode(SPACE_2.random(np.random.default_rng(1))))
    variables = draw(net, x, derived)

    @jax.jit
    def run(mixture: Mixture) -> Any:
        return net.apply(variables, x, mixture, train=train, mutable=["batch_stats"])[0]

    chex.assert_trees_all_close(run(derived), run(Mixture(derived.weights)), rtol=1e-4, atol=1e-4)


def test_images_are_halved_with_padding(draw: Callable) -> None:
    net = supernet(SPACE_3, channels=2, cells=9, num_classes=7)
    sizes = []

    def record(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, ChoiceCell) and context.method_name == "__call__":
            sizes.append(args[0].shape[1:3])
        return next_call(*args, **kwargs)

    x = jnp.zeros((2, 32, 32, 3))
    mixture = mixture_of(SPACE_3)

    def init() -> Any:
        with nn.intercept_methods(record):
            return net.init(jax.random.key(0), x, mixture, train=False)

    jax.eval_shape(init)
    assert sizes == [(32, 32)] * 3 + [(17, 17)] * 3 + [(9, 9)] * 3
    variables = draw(net, x, mixture)
    logits = jax.eval_shape(lambda: net.apply(variables, x, mixture, train=False))
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"partial": 3}, "partial: must divide the 16 channels, not 3"),
        ({"partial": 0}, "partial: must divide"),
        ({"cells": 2}, "cells: must be 3 or more"),
        ({"stem": "imagenet"}, "stem: must be 'cifar'"),
        ({"engine": "first"}, "method: needs engine cells"),
        ({"shared": True}, "method: needs engine cells"),
    ],
)
def test_what_the_space_has_not_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        supernet(SPACE_1, **{"channels": 16, "cells": 9, "num_classes": 10, **options})


def test_wrong_input_is_refused() -> None:
    net = supernet(SPACE_1, channels=4, cells=3, num_classes=10)
    good = Mixture.derived(SPACE_1.encode(SPACE_1.random(np.random.default_rng(0))))
    x = jnp.zeros((2, 8, 8, 3))
    for mixture, images, sentence in (
        (Mixture(good.weights, good.active, "scalar"), x, "method: needs edges that carry one operation each"),
        (Mixture({"operations": good.weights["operations"]}), x, "mixture: wants tables"),
        (Mixture(good.weights, {"operations": good.weights["operations"]}), x, "mixture: wants tables"),
        (good, x[0], "dataset: wants image batches"),
    ):
        with pytest.raises(UsageError, match=sentence):
            jax.eval_shape(lambda m=mixture, i=images: net.init(jax.random.key(0), i, m, train=False))
