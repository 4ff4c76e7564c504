"""A search as a function of its key."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture
from gaea_jax.nets.ops import Classifier, ReluConvNorm
from gaea_jax.nets.supernet import MixedCell
from gaea_jax.spaces import derive, get_space
from gaea_jax.train import SearchConfig, make_search, search
from gaea_jax.train.sweep import Runs

CONFIG = SearchConfig(steps=3, channels=4, cells=1, batch_size=8, loop="scan", report_every=3)


class Net(nn.Module):
    """A supernet of one cell, which compiles faster than one of three stages."""

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        x = ReluConvNorm(4, 3)(x, train)
        return Classifier(10)(MixedCell(get_space(CONFIG.space), jnp.float32, name="cell_0_0")(x, mixture, train))


@pytest.fixture(autouse=True)
def one_cell(monkeypatch):
    monkeypatch.setattr("gaea_jax.train.prepare.supernet", lambda space, **size: Net())


def test_mapped_over_keys_it_is_the_search_of_each_seed():
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    found = jax.jit(jax.lax.map)(make_search(CONFIG), keys)
    for seed, state in enumerate(Runs(found.state).split()):
        alone = search(dataclasses.replace(CONFIG, seed=seed), devices=jax.devices()[:1])
        assert state.step == alone.state.step and state.key == alone.state.key
        for found_part, part in ((state.params, alone.state.params), (state.collections, alone.state.collections)):
            chex.assert_trees_all_close(found_part, part, rtol=1e-6, atol=1e-6)
        space = get_space(CONFIG.space)
        weights = jax.tree.map(lambda table, seed=seed: table[seed], found.weights)
        assert derive(space, weights) == alone.genotype
        assert float(found.metrics["loss"][seed].mean()) == pytest.approx(alone.records[-1]["loss"], rel=1e-5)


def test_mapped_over_rates_it_is_the_search_of_each_rate():
    config = dataclasses.replace(CONFIG, method="darts")
    key, rates = jax.random.key(0), jnp.array([3e-4, 0.03])
    find = make_search(config)
    found = jax.jit(jax.vmap(lambda rate: find(key, {"arch_learning_rate": rate})))(rates)
    alone = search(dataclasses.replace(config, arch_learning_rate=0.03), devices=jax.devices()[:1])
    chex.assert_trees_all_close(found.state.params["arch"]["cell"][1], alone.state.params["arch"]["cell"], atol=1e-5)
    assert not jnp.allclose(*found.state.params["arch"]["cell"], atol=1e-2)


def test_a_function_of_the_architectures_rate_has_a_gradient():
    find = make_search(dataclasses.replace(CONFIG, steps=2))

    def loss(rate):
        return find(jax.random.key(0), {"arch_learning_rate": rate}).metrics["loss"][-1]

    # The loss has kinks, so that its slope at one rate is not that nearby: it is integrated.
    rates = jnp.linspace(0.0, 2.0, 11)
    losses, slopes = jax.jit(lambda rates: jax.lax.map(jax.value_and_grad(loss), rates))(rates)
    assert float(jnp.trapezoid(slopes, rates)) == pytest.approx(float(losses[-1] - losses[0]), rel=0.05)


def test_the_images_are_an_argument_of_what_is_compiled():
    find, key = make_search(CONFIG), jax.random.key(0)
    text = jax.jit(lambda find, key: find(key)).lower(find, key).as_text()
    assert max(map(len, text.splitlines())) < jax.tree.leaves(find)[0].nbytes


@pytest.mark.parametrize(("field", "value"), [("stream", True), ("out", "run"), ("table", "nb201.npz")])
def test_what_only_reports_need_is_refused(field, value):
    with pytest.raises(UsageError, match=f"{field}: is for a search that reports"):
        make_search(dataclasses.replace(CONFIG, **{field: value}))
