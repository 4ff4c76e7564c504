import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gaea_jax.data import normalise
from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture
from gaea_jax.train.evaluate import accuracy_on, held_out_batches, supernet_accuracy
from gaea_jax.train.loop import split_over

MIXTURE = Mixture({"cell": jnp.full((6, 4), 0.25)})


def share(logits, labels):
    return 100 * np.mean(np.argmax(logits, axis=-1) == np.asarray(labels))


@pytest.fixture(scope="module")
def state(tiny, batch):
    """A state whose running statistics are those of no batch."""
    state = tiny.state()
    for _ in range(3):
        state, _ = jax.jit(tiny.step())(state, batch)
    return state


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_accuracy_of_a_supernet_on_the_named_images(tiny, state, dataset, statistics):
    indices = np.random.default_rng(0).permutation(40)[:27]
    accuracy = supernet_accuracy(tiny.net, held_out_batches(dataset, indices, 8), statistics)
    variables = {"params": state.params["weights"], **state.collections}
    logits = []
    for start in (0, 8, 16):
        x = normalise(jnp.asarray(dataset.train.images[indices[start : start + 8]]), dataset.mean, dataset.std)
        train = statistics == "batch"
        out = tiny.net.apply(variables, x, MIXTURE, train, mutable=["batch_stats"])[0]
        logits.append(out)
    expected = share(np.concatenate(logits), dataset.train.labels[indices[:24]])
    assert accuracy(state, MIXTURE) == pytest.approx(expected)
    other = Mixture({"cell": -MIXTURE.weights["cell"]})
    assert accuracy(state, other) != accuracy(state, MIXTURE)


def test_fewer_images_than_a_batch_are_one_batch(tiny, state, dataset):
    [(x, y, mask)] = held_out_batches(dataset, np.array([7, 3, 30, 4, 11]), 8)
    expected = normalise(jnp.asarray(dataset.train.images[[7, 3, 30, 4, 11]]), dataset.mean, dataset.std)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(y, dataset.train.labels[[7, 3, 30, 4, 11]])
    assert np.all(mask)
    accuracy = supernet_accuracy(tiny.net, [(x, y, mask)], "batch")
    variables = {"params": state.params["weights"], **state.collections}
    logits, _ = tiny.net.apply(variables, x, MIXTURE, True, mutable=["batch_stats"])
    assert accuracy(state, MIXTURE) == pytest.approx(share(logits, y))


@pytest.mark.parametrize(("batch_size", "shares"), [(16, 8), (20, 1)])
def test_every_device_has_its_share_of_the_held_out_images(tiny, state, dataset, batch_size, shares):
    indices = np.random.default_rng(1).permutation(40)
    batches = held_out_batches(dataset, indices, batch_size)
    assert {len(x.addressable_shards) for x, _, _ in batches} == {shares}
    assert {x.addressable_shards[0].data.shape[0] for x, _, _ in batches} == {batch_size // shares}
    everywhere = jax.device_put(state, NamedSharding(split_over(jax.devices()).mesh, PartitionSpec()))
    alone = held_out_batches(dataset, indices, batch_size, jax.devices()[:1])
    for statistics in ("batch", "running"):
        found = supernet_accuracy(tiny.net, batches, statistics)(everywhere, MIXTURE)
        assert found == supernet_accuracy(tiny.net, alone, statistics)(state, MIXTURE)


def test_unknown_statistics_are_refused(tiny, dataset):
    with pytest.raises(UsageError, match="eval_statistics: 'moving' is unknown; known are batch, running"):
        supernet_accuracy(tiny.net, held_out_batches(dataset, np.arange(5), 8), "moving")


def test_every_image_of_a_split_counts_once(tiny, state, dataset):
    net = Fixed(tiny.net)
    variables = {"params": state.params["weights"], **state.collections}
    x = normalise(jnp.asarray(dataset.test.images), dataset.mean, dataset.std)
    logits = net.apply(variables, x, train=False)
    expected = float(share(logits, dataset.test.labels))
    assert accuracy_on(net, variables, dataset.test, dataset) == pytest.approx([expected])
    # Among the first two: all but the one of three classes that is named last.
    among_2 = 100 * float(np.mean(np.argmin(logits, axis=-1) != dataset.test.labels))
    found = accuracy_on(net, variables, dataset.test, dataset, (1, 3, 2))
    assert found == pytest.approx([expected, 100, among_2]) and expected < among_2 < 100


class Fixed:
    """The tiny net under one mixture, called like a derived network."""

    def __init__(self, net):
        self.net = net

    def apply(self, variables, x, train):
        return self.net.apply(variables, x, MIXTURE, train)
