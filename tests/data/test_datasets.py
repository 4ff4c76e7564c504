import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from gaea_jax.data import Augmentation, Split, StoredSplit, load_dataset, open_dataset, take
from gaea_jax.data.resize import centre_crop, decode
from gaea_jax.errors import UsageError

SHAPE = (9, 8, 3)


def random_split(rng, size, shape=SHAPE, classes=3):
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(size)]
    return images, rng.integers(0, classes, size).tolist()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_digits_are_those_of_sklearn():
    digits, original = load_dataset("digits"), load_digits()
    assert digits.train.images.shape == (1437, 16, 16, 1) and digits.test.images.shape == (360, 16, 16, 1)
    for split in (digits.train, digits.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        # The mean of each 2x2 block is the old pixel, but for what its neighbours pull: linear interpolation
        # mixes (1, 6, 1)/8 of three old pixels into it on each axis.
    images = np.concatenate([digits.train.images, digits.test.images])[..., 0]
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    blocks = images.reshape(-1, 8, 2, 8, 2).mean((2, 4))
    mix = np.eye(8) * 6 / 8 + np.eye(8, k=1) / 8 + np.eye(8, k=-1) / 8
    mix[0, 0] = mix[7, 7] = 7 / 8
    expected = mix @ original.images @ mix.T * 255 / 16
    # Every image of scikit-learn, with its label, is there once.
    test = np.zeros(1797, bool)
    test[np.argsort(original.target, kind="stable")[::5]] = True
    order = np.concatenate([np.flatnonzero(~test), np.flatnonzero(test)])
    chex.assert_trees_all_equal(labels, original.target[order].astype(np.int32))
    chex.assert_trees_all_close(blocks, expected[order], atol=0.5)
    assert images.min() == 0 and images.max() == 255


def test_digits_split_is_stratified_and_constants_are_measured():
    digits = load_dataset("digits")
    counts = np.bincount(digits.test.labels)
    assert len(counts) == digits.num_classes == 10 and counts.min() >= 34 and counts.max() <= 37
    chex.assert_trees_all_close(digits.mean, (digits.train.images.mean() / 255,))
    chex.assert_trees_all_close(digits.std, (digits.train.images.std() / 255,))
    assert digits.augmentation == Augmentation(flip=False, pad=2, cutout=0)


def test_any_prepared_set(tmp_path, rng, write_tfds):
    splits = {"train": random_split(rng, 1003), "test": random_split(rng, 5)}
    # Further splits are not looked at, not even an empty one.
    folder = write_tfds(tmp_path, splits | {"extra": ([], [])})
    data = load_dataset("tiny", folder)
    for split, (images, labels) in ((data.train, splits["train"]), (data.test, splits["test"])):
        chex.assert_trees_all_equal(split.images, np.stack(images))
        chex.assert_trees_all_equal(split.labels, np.array(labels, np.int32))
    assert data.num_classes == 3 and data.augmentation == Augmentation(flip=True, pad=1, cutout=0)
    chex.assert_trees_all_close(np.array(data.mean), np.stack(splits["train"][0]).mean((0, 1, 2)) / 255)
    chex.assert_trees_all_close(np.array(data.std), np.stack(splits["train"][0]).std((0, 1, 2)) / 255)
    untested = load_dataset("tiny", folder, test=False)
    chex.assert_trees_all_equal(untested.train, data.train)
    chex.assert_trees_all_equal(untested.test.load(), data.test)


def test_an_opened_set_is_the_loaded_one_left_on_disk(tmp_path, rng, write_tfds):
    # More than a block, so that the statistics are summed over blocks of two lengths.
    splits = {"train": random_split(rng, 1003), "test": random_split(rng, 5)}
    write_tfds(tmp_path, splits)
    opened, loaded = open_dataset("tiny", tmp_path), load_dataset("tiny", tmp_path)
    for field in ("name", "num_classes", "mean", "std", "augmentation"):
        assert getattr(opened, field) == getattr(loaded, field)
    for stored, split in ((opened.train, loaded.train), (opened.test, loaded.test)):
        assert isinstance(stored, StoredSplit)
        assert (stored.size, stored.image_shape) == (split.size, split.image_shape) == (len(split.labels), SHAPE)
        chex.assert_trees_all_equal(stored.load(), split)
        some = np.array([4, 0, 4])
        chex.assert_trees_all_equal(stored.read(some), take(split, some))
        assert stored.read(some).labels.dtype == np.int32
    assert opened.train.read(np.array([], int)).images.shape == (0, *SHAPE)


def test_a_published_constant_needs_no_pass_over_the_images(tmp_path, rng, write_tfds, monkeypatch):
    splits = {"train": random_split(rng, 2, (16, 16, 3)), "test": random_split(rng, 2, (16, 16, 3))}
    write_tfds(tmp_path, splits, name="imagenet16_120")
    monkeypatch.setattr(StoredSplit, "read", None)
    assert open_dataset("imagenet16_120", tmp_path).mean == pytest.approx((122.68 / 255, 116.66 / 255, 104.01 / 255))


def test_digits_cannot_be_streamed():
    with pytest.raises(UsageError, match="stream: applies to TFDS sets that are stored on disk"):
        open_dataset("digits")


def test_recipe_follows_the_name(tmp_path, rng, write_tfds):
    splits = {"train": random_split(rng, 2, (16, 16, 3)), "test": random_split(rng, 2, (16, 16, 3))}
    write_tfds(tmp_path, splits, name="imagenet16_120")
    data = load_dataset("imagenet16_120:1.0.0", tmp_path)
    chex.assert_trees_all_close(np.array(data.mean) * 255, np.array([122.68, 116.66, 104.01]))
    chex.assert_trees_all_close(np.array(data.std) * 255, np.array([63.22, 61.26, 65.09]))
    assert data.augmentation == Augmentation(flip=True, pad=2, cutout=0)
    splits = {"train": random_split(rng, 2, (32, 32, 3)), "test": random_split(rng, 2, (32, 32, 3))}
    write_tfds(tmp_path, splits, name="svhn_cropped")
    assert load_dataset("svhn_cropped:1.0.0", tmp_path).augmentation == Augmentation(False, 4)


@pytest.mark.data
def test_cifar10(shared_data, monkeypatch):
    # The first block of each split is enough here; decoding all 60,000 takes ten seconds.
    from tensorflow_datasets.core.data_sources.base import BaseDataSource

    monkeypatch.setattr(BaseDataSource, "__len__", lambda source: 500)
    data = load_dataset("cifar10", shared_data / "cifar10" / "tfds")
    assert data.train.images.shape == data.test.images.shape == (500, 32, 32, 3)
    # The first labels of data_batch_1 and test_batch.
    assert data.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert data.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    chex.assert_trees_all_close(np.array(data.mean) * 255, np.array([125.3, 123.0, 113.9]))
    chex.assert_trees_all_close(np.array(data.std) * 255, np.array([63.0, 62.1, 66.7]))
    chex.assert_trees_all_close(data.train.images.mean((0, 1, 2)), np.array([125.3, 123.0, 113.9]), atol=4)
    assert data.num_classes == 10 and data.augmentation == Augmentation(flip=True, pad=4, cutout=0)


@pytest.mark.parametrize("name", ["nonesuch", "", "../cifar10", "Digits!", "huggingface:cifar10"])
def test_unknown_name(name, tmp_path):
    with pytest.raises(UsageError, match="is neither 'digits' nor an image set") as error:
        load_dataset(name, tmp_path)
    assert error.value.argument == "dataset"


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "cifar10/nonesuch"])
def test_unknown_version_or_configuration(name, tmp_path):
    with pytest.raises(UsageError, match=r"dataset: .* cannot be opened: .*(9\.9\.9|nonesuch)"):
        load_dataset(name, tmp_path)


def test_not_prepared(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    absent = tmp_path / "absent"
    with pytest.raises(UsageError, match=r"data_dir: there is no prepared copy at .*; make one with") as error:
        load_dataset("cifar100", absent)
    assert f"`tfds build cifar100 --file_format=array_record --data_dir={absent}`" in error.value.sentence
    assert not absent.exists()
    with pytest.raises(UsageError, match="make one with `tfds build cifar100 --file_format=array_record`"):
        load_dataset("cifar100")


def test_not_image_classification(tmp_path, rng, write_tfds):
    with pytest.raises(UsageError, match="dataset: 'imdb_reviews' is not for image classification"):
        load_dataset("imdb_reviews", tmp_path)
    splits = {"train": random_split(rng, 2), "test": random_split(rng, 2)}
    write_tfds(tmp_path, splits, label=tfds.features.Scalar(np.int64))
    with pytest.raises(UsageError, match="dataset: 'tiny' is not for image classification"):
        load_dataset("tiny", tmp_path)
    write_tfds(tmp_path, splits, name="deep", image=tfds.features.Image(shape=SHAPE, dtype=np.uint16))
    with pytest.raises(UsageError, match=r"'deep' .* needs features 'image' \(uint8\) and 'label'"):
        load_dataset("deep", tmp_path)


def test_splits(tmp_path, rng, write_tfds):
    full = random_split(rng, 2)
    write_tfds(tmp_path, {"train": full, "validation": full})
    with pytest.raises(UsageError, match="dataset: 'tiny' has no images in a split 'test'"):
        load_dataset("tiny", tmp_path)
    write_tfds(tmp_path, {"train": full, "test": ([], [])}, name="empty")
    with pytest.raises(UsageError, match="dataset: 'empty' has no images in a split 'test'"):
        load_dataset("empty", tmp_path)


def test_images_and_labels_that_cannot_be_used(tmp_path, rng, write_tfds):
    images, labels = random_split(rng, 4)
    larger, _ = random_split(rng, 4, (12, 12, 3))
    write_tfds(tmp_path, {"train": (images[:3] + larger[:1], labels), "test": (images, labels)}, name="mixed")
    with pytest.raises(UsageError, match=r"'mixed' has images of different sizes, such as \(9, 8, 3\) and"):
        load_dataset("mixed", tmp_path)
    write_tfds(tmp_path, {"train": (images, labels), "test": (larger, labels)}, name="differ")
    with pytest.raises(UsageError, match="dataset: 'differ' has images of different sizes"):
        load_dataset("differ", tmp_path)
    write_tfds(tmp_path, {"train": (images, labels), "test": (images, [-1] * 4)}, name="unlabelled")
    with pytest.raises(UsageError, match="dataset: 'unlabelled' has images without a label"):
        load_dataset("unlabelled", tmp_path)
    # A stored split finds out when it reads them.
    stored = open_dataset("unlabelled", tmp_path).test
    with pytest.raises(UsageError, match="dataset: 'unlabelled' has images without a label"):
        stored.read(np.array([1]))
    flat = [np.full(SHAPE, (1, 2, 3), np.uint8) for _ in range(4)]
    write_tfds(tmp_path, {"train": (flat, labels), "test": (flat, labels)}, name="flat")
    with pytest.raises(UsageError, match="dataset: 'flat' has a channel that is the same in all pixels"):
        load_dataset("flat", tmp_path)


def test_imagenet_is_opened_at_any_size(tmp_path, write_tfds, photos, monkeypatch):
    labels = list(range(20))
    splits = {"train": (photos, labels), "validation": (photos[::-1], labels)}
    # The images for testing have no labels.
    write_tfds(
        tmp_path,
        splits | {"test": (photos[:2], [-1] * 2)},
        name="imagenet2012",
        label=tfds.features.ClassLabel(num_classes=1000),
    )
    with monkeypatch.context() as context:
        context.setattr(StoredSplit, "read", None)
        data = open_dataset("imagenet2012:1.0.0", tmp_path, image_size=14)
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
    assert data.augmentation == Augmentation(flip=True, pad=0) and data.num_classes == 1000
    for split, name, files in ((data.train, "train", photos), (data.test, "validation", photos[::-1])):
        assert (split.name, split.size, split.image_shape) == (name, 20, (14, 14, 3))
        expected = np.stack([centre_crop(decode(file, 3), 14) for file in files])
        chex.assert_trees_all_equal(split.load(), Split(expected, np.arange(20, dtype=np.int32)))


def test_sets_of_different_sizes_need_an_image_size(tmp_path, rng, write_tfds, photos):
    write_tfds(tmp_path, {"train": (photos, [0] * 20), "test": (photos, [0] * 20)})
    for read in (open_dataset, load_dataset):
        with pytest.raises(UsageError, match=r"'tiny' has images of different sizes, .*--image-size .*--stream"):
            read("tiny", tmp_path)
    # One image in the middle is enough.
    images, labels = random_split(rng, 15)
    images[7] = images[7][:-1]
    write_tfds(tmp_path, {"train": (images, labels), "test": (images[:7], labels[:7])}, name="one")
    with pytest.raises(UsageError, match="dataset: 'one' has images of different sizes"):
        open_dataset("one", tmp_path)


def test_statistics_of_other_sets_are_those_of_the_middles(tmp_path, write_tfds, photos):
    write_tfds(tmp_path, {"train": (photos, [1] * 20), "test": (photos[:3], [1] * 3)})
    data = open_dataset("tiny", tmp_path, image_size=9)
    middles = data.train.load().images / 255
    chex.assert_trees_all_close(np.array(data.mean), middles.mean((0, 1, 2)))
    chex.assert_trees_all_close(np.array(data.std), middles.std((0, 1, 2)))
    assert data.test.image_shape == (9, 9, 3)


def test_sets_of_one_size_can_be_resized_too(tmp_path, rng, write_tfds):
    images, labels = random_split(rng, 3, (28, 28, 1))
    grey = tfds.features.Image(shape=(28, 28, 1))
    files = {"train": ([image[..., 0] for image in images], labels), "test": ([images[0][..., 0]], labels[:1])}
    write_tfds(tmp_path, files, name="mnist", image=grey)
    data = open_dataset("mnist:1.0.0", tmp_path, image_size=7)
    assert data.augmentation == Augmentation(flip=False, pad=0)
    expected = np.stack([centre_crop(Image.fromarray(image[..., 0]), 7) for image in images])
    chex.assert_trees_all_equal(data.train.load().images, expected)


def test_image_sizes_that_cannot_be(tmp_path, rng, write_tfds):
    for wrong in (0, -224):
        with pytest.raises(UsageError, match=f"image_size: must be 1 or more pixels, not {wrong}"):
            open_dataset("imagenet2012", tmp_path, wrong)
    splits = {"train": random_split(rng, 2, (4, 4, 4)), "test": random_split(rng, 2, (4, 4, 4))}
    write_tfds(tmp_path, splits, image=tfds.features.Image(shape=(None, None, 4)))
    with pytest.raises(UsageError, match="image_size: needs images of 1 or 3 channels; those of 'tiny' have 4"):
        open_dataset("tiny", tmp_path, 2)
    with pytest.raises(UsageError, match="stream: applies to TFDS sets that are stored on disk"):
        open_dataset("digits", image_size=8)


def test_a_broken_image_is_found_when_it_is_read(tmp_path, write_tfds, photos):
    files = [*photos[:5], photos[5][:60]]
    write_tfds(tmp_path, {"train": (files, [0] * 6), "validation": (files, [0] * 6)}, name="imagenette")
    data = open_dataset("imagenette:1.0.0", tmp_path, 8)
    assert data.test.read(np.arange(5)).size == 5
    with pytest.raises(UsageError, match=r"image 5 of the split 'validation' of 'imagenette:1.0.0' cannot be decoded"):
        data.test.load()


def test_without_the_split_that_imagenet_is_tested_on(tmp_path, write_tfds, photos):
    write_tfds(tmp_path, {"train": (photos, [0] * 20), "test": (photos, [-1] * 20)}, name="imagenet2012")
    with pytest.raises(UsageError, match="no images in a split 'validation'; it needs 'train' and 'validation'"):
        open_dataset("imagenet2012:1.0.0", tmp_path, 8)


def test_wrong_file_format(tmp_path, rng, write_tfds):
    splits = {"train": random_split(rng, 2), "test": random_split(rng, 2)}
    write_tfds(tmp_path, splits, file_format="tfrecord")
    with pytest.raises(UsageError, match=r"data_dir: the copy at .* is not in array_record format; make one"):
        load_dataset("tiny", tmp_path)
