import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.data import make_order
from gaea_jax.data.order import KINDS
from gaea_jax.errors import UsageError

KEY = jax.random.key(0)
SUBSET = np.array([19, 3, 4, 8, 0, 11, 12], np.uint16)


def drawn(order, steps):
    return np.asarray(jax.jit(lambda order: jax.vmap(order.indices)(jnp.arange(steps)))(order))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epochs", [[742, 483, 700, 1168, 968], [218, 111, 742, 483, 700], [1393, 60, 874, 909, 915]]),
        ("random", [[742, 483, 700, 1168, 968], [950, 1171, 284, 692, 533], [1354, 174, 954, 1116, 836]]),
    ],
)
def test_the_batches_of_published_runs_stay_as_they_are(kind, expected):
    """Recorded before the kinds had a record of their own; steps 0, 287 (fills up the epoch) and 300 (the next)."""
    order = make_order(kind, jax.random.fold_in(jax.random.key(5), 0), 1437, 5)
    assert [order.indices(step).tolist() for step in (0, 287, 300)] == expected


def test_epochs_of_a_subset_show_each_of_its_images():
    order = make_order("epochs", KEY, 20, 3, SUBSET)
    assert order.steps_per_epoch == 3
    epochs = drawn(order, 9).reshape(3, 9)
    for epoch in epochs:
        assert sorted(epoch[:7]) == sorted(SUBSET)
        chex.assert_trees_all_equal(epoch[7:], epoch[:2])
    assert len(set(map(tuple, epochs))) == 3


def test_random_batches_of_a_subset_have_no_image_twice():
    batches = drawn(make_order("random", KEY, 20, 3, SUBSET), 200)
    assert all(len(set(batch)) == 3 for batch in batches.tolist())
    assert set(batches.ravel()) == set(SUBSET.tolist())


@pytest.mark.parametrize("subset", [None, SUBSET], ids=["all", "subset"])
def test_independent_draws_are_uniform_and_with_replacement(subset):
    images = range(7) if subset is None else subset.tolist()
    order = make_order("independent", KEY, 7 if subset is None else 20, 4, subset)
    assert order.steps_per_epoch == 1
    steps = 6000
    batches = drawn(order, steps)
    assert batches.dtype == np.int32
    counts = np.array([(batches == image).sum() for image in images])
    assert counts.sum() == batches.size
    deviation = math.sqrt(batches.size * (1 / 7) * (6 / 7))
    assert np.abs(counts - batches.size / 7).max() < 4 * deviation
    # Four draws of seven all differ with probability 6/7 5/7 4/7; one is that of the step before with 1/7.
    distinct = np.mean([len(set(batch)) == 4 for batch in batches.tolist()])
    assert distinct == pytest.approx(120 / 343, abs=4 * 0.5 / math.sqrt(steps))
    assert np.mean(batches[1:] == batches[:-1]) == pytest.approx(1 / 7, abs=4 * 0.35 / math.sqrt(4 * steps))


@pytest.mark.parametrize("subset", [[0, 20], [-1], [0.0, 1.0], [[0, 1]], [True, False]], ids=str)
def test_a_subset_of_other_things_is_refused(subset):
    with pytest.raises(UsageError, match=r"subset: must be a list of whole numbers in 0\.\.19"):
        make_order("epochs", KEY, 20, 1, np.array(subset))


@pytest.mark.parametrize("batch_size", [0, -3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_out_of_range(kind, batch_size):
    with pytest.raises(UsageError, match=f"batch_size: must be between 1 and the 7 images there are, not {batch_size}"):
        make_order(kind, KEY, 20, batch_size, SUBSET)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="kind: 'shuffled' is unknown; known are epochs, random, independent"):
        make_order("shuffled", KEY, 20, 3)
