import chex
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.data import Split, StoredSplit, eval_batches, normalise, take
from gaea_jax.data.resize import centre_crop, decode, random_crop
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


SIDE = 6


@pytest.fixture
def resized(photos):
    """Images of any size."""
    records = Records({"image": photo, "label": number} for number, photo in enumerate(photos))
    return StoredSplit("photos", "train", records, (SIDE, SIDE, 3), resized=True)


def test_images_of_any_size_are_cropped_in_the_middle_unless_at_random(photos, resized):
    indices = np.array([7, 0, 7, 12])
    images = [decode(photos[index], 3) for index in indices]
    middle = np.stack([centre_crop(image, SIDE) for image in images])
    for part in (resized.read(indices), take(resized, indices)):
        chex.assert_trees_all_equal(part, Split(middle, indices.astype(np.int32)))
    draws = np.random.default_rng(0).random((4, 10, 4), np.float32)
    crops = np.stack([random_crop(image, SIDE, one) for image, one in zip(images, draws, strict=True)])
    chex.assert_trees_all_equal(resized.read(indices, draws), Split(crops, indices.astype(np.int32)))
    assert not np.array_equal(crops[0], crops[2])
    chex.assert_trees_all_equal(resized.load(), resized.read(np.arange(20)))


def test_images_of_any_size_are_tested_in_batches_of_one(resized):
    constants = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batches = list(eval_batches(resized, 8, *constants))
    images = jnp.concatenate([images[mask] for images, _, mask in batches])
    chex.assert_trees_all_equal(images, normalise(jnp.asarray(resized.load().images), *constants))
    assert np.concatenate([labels[mask] for _, labels, mask in batches]).tolist() == list(range(20))


def test_a_broken_file_is_named(resized):
    resized.records[3] = {"image": resized.records[4]["image"][:100], "label": 0}
    for read in (resized.load, lambda: take(resized, np.array([2, 3]))):
        with pytest.raises(UsageError, match=r"^dataset: image 3 of the split 'train' of 'photos' cannot be decoded$"):
            read()
    resized.records[3] = {"image": resized.records[4]["image"], "label": -1}
    with pytest.raises(UsageError, match="'photos' has images without a label"):
        resized.load()
