import re

import chex
import numpy as np
import pytest

from gaea_jax.data import first_and_last_half, load_train_valid
from gaea_jax.errors import UsageError

SIZE = 6


@pytest.fixture
def split_file(tmp_path):
    def write(**arrays):
        path = tmp_path / "split.npz"
        np.savez(path, allow_pickle=False, **{name: np.array(values) for name, values in arrays.items()})
        return path

    return write


def test_the_numbers_come_as_they_are_in_the_file(split_file):
    path = split_file(train=np.array([5, 0, 3], np.uint16), valid=np.array([4, 2, 1], np.int64), other=[1.5])
    train, valid = load_train_valid(path, SIZE)
    chex.assert_trees_all_equal((train, valid), (np.array([5, 0, 3], np.int32), np.array([4, 2, 1], np.int32)))
    assert train.dtype == valid.dtype == np.int32


def test_parts_may_leave_images_out_where_the_file_says_of_how_many(split_file):
    parts = {"train": [5, 0], "valid": [2]}
    found = load_train_valid(split_file(**parts, images=SIZE), SIZE)
    assert {name: numbers.tolist() for name, numbers in found._asdict().items()} == parts
    with pytest.raises(UsageError, match="is for 7 training images, but the data set has 6; it is of another"):
        load_train_valid(split_file(**parts, images=7), SIZE)
    for images in (6.0, [6]):
        with pytest.raises(UsageError, match="images must be a whole number, not"):
            load_train_valid(split_file(**parts, images=images), SIZE)
    none = np.zeros(0, int)
    for wrong, sentence in (
        ({"train": [5, 6], "valid": [2]}, "has an image 6"),
        ({"train": [5, 2], "valid": [2]}, "has image 2 more than once"),
        ({"train": none, "valid": none}, "train has no image"),
    ):
        with pytest.raises(UsageError, match=sentence):
            load_train_valid(split_file(**wrong, images=SIZE), SIZE)


@pytest.mark.data
def test_the_split_of_nas_bench_201(shared_data):
    path = shared_data / "cifar10" / "nas_bench_201_split.npz"
    train, valid = load_train_valid(path, 50_000)
    assert len(train) == len(valid) == 25_000
    assert sorted([*train, *valid]) == list(range(50_000))
    with pytest.raises(UsageError, match="splits 50000 images, but the data set has 1437 training images"):
        load_train_valid(path, 1437)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"train": [0, 1, 2]}, "must have arrays train and valid, not train"),
        ({"first": [0, 1, 2]}, "must have arrays train and valid, not neither"),
        (
            {"train": [0, 1, 2], "valid": [3.0, 4.0, 5.0]},
            r"valid must be a list of whole numbers, not float64 of shape",
        ),
        ({"train": [True, False], "valid": [2, 3, 4, 5]}, "train must be a list of whole numbers, not bool"),
        ({"train": [[0, 1, 2]], "valid": [[3, 4, 5]]}, r"train must be a list .*, not int64 of shape \(1, 3\)"),
        ({"train": [0, 1, 1], "valid": [3, 4, 5]}, "has image 1 more than once"),
        ({"train": [0, 1, 2], "valid": [2, 3, 4, 5]}, "has image 2 more than once"),
        ({"train": [0, 1, 2], "valid": [3, 4, 6]}, r"has an image 6; the 6 images are numbered 0\.\.5"),
        ({"train": [0, 1, 2], "valid": [3, 4, -1]}, r"has an image -1; the 6 images are numbered 0\.\.5"),
        ({"train": [0, 1, 2], "valid": [3, 4]}, "splits 5 images, but the data set has 6 training images"),
        ({"train": [0, 1, 2, 6], "valid": [3, 4, 5, 7]}, "splits 8 images, but the data set has 6 training images"),
    ],
    ids=str,
)
def test_what_does_not_split_the_images_in_two_is_refused(split_file, arrays, sentence):
    with pytest.raises(UsageError, match=sentence) as error:
        load_train_valid(split_file(**arrays), SIZE)
    assert error.value.argument == "split"


@pytest.mark.parametrize("content", [b"", b"train", b"PK\x03\x04 and no more"], ids=str)
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "split.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"split: .* is damaged or not an \.npz file of plain arrays"):
        load_train_valid(path, SIZE)


def test_single_arrays_and_objects_are_refused_without_unpickling(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "single.npy", np.arange(6))
    objects = np.array([Bomb()], object)
    np.savez(tmp_path / "objects.npz", train=objects, valid=objects)
    for name in ("single.npy", "objects.npz"):
        with pytest.raises(UsageError, match=r"split: .* is damaged or not an \.npz file of plain arrays"):
            load_train_valid(tmp_path / name, SIZE)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(UsageError, match=f"split: cannot read {path} \\("):
            load_train_valid(path, SIZE)


def test_the_fixed_halves_are_the_first_and_the_last_images():
    train, valid = first_and_last_half(50_000)
    assert (train[0], train[-1], valid[0], valid[-1]) == (0, 24_999, 25_000, 49_999)
    assert len(train) == len(valid) == 25_000 and train.dtype == valid.dtype == np.int32


def test_the_digest_is_that_of_the_images_in_their_order():
    split = first_and_last_half(6)
    others = [first_and_last_half(7), split._replace(valid=split.valid[::-1]), type(split)(*reversed(split))]
    assert len({one.digest() for one in (split, first_and_last_half(6), *others)}) == 4
    assert re.fullmatch("[0-9a-f]{12}", split.digest())
