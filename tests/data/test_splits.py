import chex
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.data import Split, StoredSplit, take
from gaea_jax.errors import UsageError

SHAPE = (3, 2, 1)


class Records(list):
    def __getitems__(self, keys):
        return [self[key] for key in keys]


@pytest.fixture
def split():
    images = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)
    return Split(images, np.arange(10, 15, dtype=np.int32))


@pytest.fixture
def stored(split):
    records = Records({"image": image, "label": label} for image, label in zip(*split, strict=True))
    return StoredSplit("noise", "train", records, SHAPE)


def test_a_part_of_a_split_is_the_same_wherever_the_images_are(split, stored):
    indices = np.array([4, 0, 4, 2])
    expected = Split(split.images[indices], split.labels[indices])
    on_device = Split(jnp.asarray(split.images), jnp.asarray(split.labels))
    for whole in (split, stored, on_device):
        assert (whole.size, whole.image_shape) == (5, SHAPE)
        part = take(whole, jnp.asarray(indices))
        chex.assert_trees_all_equal(part, expected)
        assert (part.size, part.image_shape) == (4, SHAPE)


@pytest.mark.parametrize("wrong", [5, -1])
def test_images_that_are_not_there_are_refused(split, stored, wrong):
    for whole in (split, stored, Split(*map(jnp.asarray, split))):
        with pytest.raises(UsageError, match=r"indices: must be in 0\.\.4"):
            take(whole, np.array([0, wrong]))


def test_a_stored_image_of_another_size_or_without_a_label_is_refused(stored):
    stored.records[3] = {"image": np.zeros((2, 2, 1), np.uint8), "label": 0}
    stored.records[2] = {"image": np.zeros(SHAPE, np.uint8), "label": -1}
    assert stored.read(np.array([0, 1, 4])).size == 3
    with pytest.raises(UsageError, match=r"'noise' has images of different sizes, such as \(3, 2, 1\) and \(2, 2, 1\)"):
        stored.load()
    with pytest.raises(UsageError, match="'noise' has images without a label"):
        stored.read(np.array([2]))
