import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaea_jax.data import shuffled
from gaea_jax.errors import UsageError


def orders(size, keys, seed=0):
    """Many whole orders, one a row."""
    keys = jax.random.split(jax.random.key(seed), keys)
    return np.asarray(jax.vmap(lambda key: shuffled(key, jnp.arange(size), size))(keys))


def excess(counts, degrees):
    """How many standard deviations a chi-square statistic of equally likely cells lies above its mean."""
    expected = counts.mean()
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


@settings(deadline=None, max_examples=40)
@given(size=st.sampled_from([1, 2, 17, 256, 257, 1437]), seed=st.integers(0, 2**32 - 1))
def test_an_order_holds_everything_once(size, seed):
    order = shuffled(jax.random.key(seed), jnp.arange(size), size)
    assert order.dtype == jnp.int32
    assert sorted(order.tolist()) == list(range(size))


def test_parts_of_an_order_agree_with_the_whole():
    whole = shuffled(jax.random.key(3), jnp.arange(100), 100)
    positions = jnp.array([[7, 99], [0, 7]])
    chex.assert_trees_all_equal(shuffled(jax.random.key(3), positions, 100), whole[positions])


@pytest.mark.parametrize("size", [2, 5])
def test_all_orders_of_a_few_things_are_equally_likely(size):
    codes = orders(size, 20_000) @ size ** np.arange(size)
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert excess(counts, len(counts) - 1) < 4


def test_neighbours_are_independent():
    size, keys = 60, 20_000
    drawn = orders(size, keys)
    pairs = np.zeros((size, size))
    np.add.at(pairs, (drawn[:, 0], drawn[:, 1]), 1)
    assert excess(pairs[~np.eye(size, dtype=bool)], size * (size - 1) - 1) < 4
    gaps = np.bincount((np.diff(drawn, axis=1) % size).ravel(), minlength=size)[1:]
    assert excess(gaps, size - 2) < 4


@pytest.mark.parametrize("size", [0, -1, 2**30 + 1])
def test_size_out_of_range(size):
    with pytest.raises(UsageError, match="size: must be between 1 and"):
        shuffled(jax.random.key(0), jnp.arange(1), size)
