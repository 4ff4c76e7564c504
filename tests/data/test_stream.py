"""Streams against the sources on the device, whose batches they have to give bit for bit."""

import gc
import threading
import time

import chex
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gaea_jax.checkpoint import Checkpoints
from gaea_jax.data import (
    IMAGENET_JITTER,
    Augmentation,
    Dataset,
    Split,
    StoredSplit,
    Stream,
    TrainValid,
    epoch_batches,
    open_dataset,
    search_source,
)
from gaea_jax.data import stream as stream_module
from gaea_jax.errors import UsageError

SIZE, BATCH = 20, 8
SHAPE = (4, 4, 1)
RECIPE = (Augmentation(flip=True, pad=1, cutout=2), (0.5,), (0.25,))
HALVES = TrainValid(np.array([19, *range(8)], np.int32), np.arange(8, 19, dtype=np.int32))
OTHER_HALVES = TrainValid(HALVES.train[::-1], HALVES.valid)
OBJECTIVES = {
    "joint": {"objective": "single-level", "order": "joint"},
    "alternating": {"objective": "single-level", "order": "alternating"},
    "bilevel": {"objective": "bilevel", "order": "alternating", "train_valid": HALVES},
}
# On through an epoch, back, far ahead, and the same once more.
STEPS = (0, 1, 2, 3, 1, 2, 1000, 1000)


class Records(list):
    """Records that can be read like those of TFDS, and that tell which were."""

    def __init__(self, records):
        super().__init__(records)
        self.read = []
        self.fails = False

    def __getitems__(self, keys):
        self.read.extend(keys)
        if self.fails:
            raise OSError("the disk is gone")
        return [self[key] for key in keys]


@pytest.fixture(scope="module")
def split():
    images = np.random.default_rng(0).integers(0, 256, (SIZE, *SHAPE), np.uint8)
    return Split(images, np.arange(SIZE, dtype=np.int32))


@pytest.fixture
def stored(split):
    records = Records({"image": image, "label": label} for image, label in zip(*split, strict=True))
    return StoredSplit("noise", "train", records, SHAPE)


@pytest.fixture
def make(stored, split):
    """Makes the source of a search, streamed or on the device; the threads of streams end with the test."""
    made = []

    def make(objective="bilevel", *, seed=0, batch_size=BATCH, train=stored, **options):
        dataset = Dataset("noise", train, split, SIZE, *RECIPE[1:], RECIPE[0])
        options = {**OBJECTIVES[objective], **options}
        source = search_source(dataset, jax.random.key(seed), batch_size, **options)
        if isinstance(source, Stream):
            made.append(source)
        return source

    yield make
    for stream in made:
        stream.close()


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain")]


def assert_threads_end():
    end = time.monotonic() + 10
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not threads()


@pytest.mark.parametrize("objective", ["alternating", "bilevel"])
def test_a_stream_gives_the_batches_of_the_device(make, split, objective):
    stream, source = make(objective), make(objective, train=split)
    for step in STEPS:
        chex.assert_trees_all_equal(stream(step), source(step))


def test_a_blank_batch_has_the_form_of_all_and_reads_nothing(make, stored):
    stream = make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for _ in range(2):
        stored.records.read.clear()
        blank = stream.blank()
        assert not stored.records.read
        batch = stream(0)
        chex.assert_trees_all_equal_shapes_and_dtypes(blank, batch)
        assert [leaf.sharding for leaf in jax.tree.leaves(blank)] == [leaf.sharding for leaf in jax.tree.leaves(batch)]
        stream.close()
        assert_threads_end()
        stream.place(NamedSharding(mesh, PartitionSpec()))


def test_eight_devices_give_the_batches_of_one(make, split):
    stream, source = make(), make(train=split)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    stream.place(NamedSharding(mesh, PartitionSpec()))
    for step in STEPS[:5]:
        batch = stream(step)
        chex.assert_trees_all_equal(jax.device_get(batch), jax.device_get(source(step)))
        for leaf in jax.tree.leaves(batch):
            assert len(leaf.sharding.device_set) == 8 and leaf.addressable_shards[0].data.shape[0] == 1


def test_batches_of_one_network_are_pairs(stored, split):
    with epoch_batches(stored, jax.random.key(0), BATCH, *RECIPE) as stream:
        source = epoch_batches(split, jax.random.key(0), BATCH, *RECIPE)
        for step in STEPS[:5]:
            chex.assert_trees_all_equal(stream(step), source(step))
        assert stream.get_state()["pipeline"]["batch size"] == BATCH


def test_following_steps_read_ahead_and_nothing_twice(make, stored):
    stream = make("joint")
    ahead = stream_module.AHEAD
    for step in range(6):
        stream(step)
    end = time.monotonic() + 10
    while len(stored.records.read) < (6 + ahead) * BATCH and time.monotonic() < end:
        time.sleep(0.01)
    assert len(stored.records.read) == (6 + ahead) * BATCH


def test_a_stream_goes_on_where_another_was(make, tmp_path):
    first, straight = make(), make()
    for step in range(3):
        first(step)
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(3, first.get_state())
        second = make()
        _, state = checkpoints.restore(second.get_state())
    second.set_state(state)
    assert second.get_state()["iterator"] == {"next_index": 3}
    for step in range(3, 6):
        chex.assert_trees_all_equal(second(step), straight(step))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"seed": 1}, "another arch key, another weights key; it must be of this one"),
        ({"batch_size": 4}, "another arch batch size, another weights batch size; it"),
        ({"train_valid": OTHER_HALVES}, "is of a stream with another weights subset; it"),
        ({"objective": "alternating"}, "another arch kind, another arch subset, another weights subset; it"),
        ({"objective": "joint"}, "must be of a stream of arch data set, arch size"),
    ],
    ids=str,
)
def test_the_state_of_a_stream_of_other_batches_is_refused(make, other, sentence):
    stream = make()
    stream(0)
    before = stream.get_state()
    with pytest.raises(UsageError, match=f"^state: .*{sentence}"):
        stream.set_state(make(**other).get_state())
    assert stream.get_state()["iterator"] == before["iterator"]


def test_the_state_of_another_data_set_or_of_no_step_is_refused(make, stored):
    records = Records(list(stored.records) * 2)
    for train, sentence in (
        (StoredSplit("other", "train", stored.records, SHAPE), "with another arch data set, another weights data set;"),
        (StoredSplit("noise", "test", stored.records, SHAPE), "with another arch data set, another weights data set;"),
        (StoredSplit("noise", "train", records, SHAPE), "with another arch size, another weights size;"),
    ):
        with pytest.raises(UsageError, match=f"state: is of a stream {sentence}"):
            make().set_state(make(train=train).get_state())
    stream = make()
    with pytest.raises(UsageError, match=r"state: must be of a step in 0\.\.2147483647, not {'next_index': -1}"):
        stream.set_state({**stream.get_state(), "iterator": {"next_index": -1}})


def test_after_a_failure_the_step_can_be_asked_again(make, stored, split):
    stream, source = make(), make(train=split)
    stream(0)
    stored.records.fails = True
    with pytest.raises(OSError, match="the disk is gone"):
        for step in range(1, 100):
            stream(step)
    assert_threads_end()
    stored.records.fails = False
    chex.assert_trees_all_equal(stream(step), source(step))


def test_the_threads_end_with_the_context_and_start_anew(make, split):
    stream = make()
    with stream:
        stream(0)
        assert threads()
    assert_threads_end()
    chex.assert_trees_all_equal(stream(1), make(train=split)(1))
    stream.close()
    assert_threads_end()
    with pytest.raises(ZeroDivisionError), stream:
        stream(0)
        raise ZeroDivisionError
    assert_threads_end()


def test_the_threads_of_a_forgotten_stream_end(stored):
    stream = epoch_batches(stored, jax.random.key(0), BATCH, *RECIPE)
    stream(0)
    assert threads()
    del stream
    gc.collect()
    assert_threads_end()


def test_without_a_cpu_beside_the_device_there_is_no_stream(make, monkeypatch):
    def only_the_device(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", only_the_device)
    with pytest.raises(UsageError, match="stream: needs JAX's CPU backend beside the others; add cpu to JAX_PLATFORMS"):
        make()


def test_a_mocked_tfds_set_is_streamed(tmp_path, write_tfds):
    """TFDS makes up the images; only the description of the set is there."""
    image = tfds.features.Image(shape=(6, 5, 3), dtype=np.uint8)
    nothing = np.zeros((6, 5, 3), np.uint8)
    write_tfds(tmp_path, {"train": ([nothing], [0]), "test": ([nothing], [0])}, image=image)

    def as_data_source(builder, split):
        # The mock of TFDS 4.9.10 reads one record at a time only: its __getitems__ lacks an argument.
        features = builder.info.features
        generator = tfds.testing.mocking.RandomFakeGenerator(features, SIZE)
        return [Records(generator[index] for index in range(SIZE)) for _ in split]

    with tfds.testing.mock_data(data_dir=str(tmp_path), as_data_source_fn=as_data_source):
        dataset = open_dataset("tiny", tmp_path)
    assert (dataset.train.size, dataset.train.image_shape) == (SIZE, (6, 5, 3))
    loaded = Dataset(**{**vars(dataset), "train": dataset.train.load()})
    options = OBJECTIVES["bilevel"]
    with search_source(dataset, jax.random.key(0), BATCH, **options) as stream:
        source = search_source(loaded, jax.random.key(0), BATCH, **options)
        for step in range(3):
            chex.assert_trees_all_equal(stream(step), source(step))


SIDE = 6
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def photo_stream(photos):
    """Makes the stream of a search on images of any size; the threads end with the test."""
    made = []

    def make(objective="bilevel", *, side=SIDE, jitter=None, files=photos):
        records = Records({"image": photo, "label": number} for number, photo in enumerate(files))
        split = StoredSplit("photos", "train", records, (side, side, 3), resized=True)
        augmentation = Augmentation(flip=True, pad=0, jitter=jitter)
        dataset = Dataset("photos", split, split, SIZE, *IMAGENET, augmentation)
        made.append(search_source(dataset, jax.random.key(0), BATCH, **OBJECTIVES[objective]))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def numbers(images):
    """The number of each photo, which is in its blue."""
    blue = np.asarray(images)[..., 2] * 0.225 + 0.406
    return np.rint(blue.mean((1, 2)) * 255 / 10).astype(int).tolist()


def test_crops_are_random_and_new_in_every_epoch_and_stream(photo_stream):
    stream = photo_stream("alternating")
    seen = {}
    for step in range(12):
        for images, labels in stream(step).values():
            assert images.shape == (BATCH, SIDE, SIDE, 3) and images.dtype == np.float32
            assert numbers(images) == labels.tolist()
            for image, label in zip(np.asarray(images), labels.tolist(), strict=True):
                seen.setdefault(label, []).append(image.tobytes())
    assert sorted(seen) == list(range(SIZE))
    # The smallest images have few crops.
    counts, distinct = np.array([(len(crops), len(set(crops))) for crops in seen.values()]).T
    assert counts.sum() == 2 * 12 * BATCH and distinct.sum() > 0.95 * counts.sum() and distinct.min() > 1


@pytest.mark.parametrize(("threads", "ahead", "cores"), [(1, 1, 1), (3, 5, 2), (16, 40, 1), (1, 2, 7)])
def test_batches_do_not_depend_on_threads_and_prefetching(photo_stream, monkeypatch, threads, ahead, cores):
    straight = photo_stream(jitter=IMAGENET_JITTER)
    expected = [jax.device_get(straight(step)) for step in STEPS]
    straight.close()
    monkeypatch.setattr(stream_module, "THREADS", threads)
    monkeypatch.setattr(stream_module, "AHEAD", ahead)
    monkeypatch.setattr(stream_module.os, "cpu_count", lambda: cores)
    stream = photo_stream(jitter=IMAGENET_JITTER)
    for step, batch in zip(STEPS, expected, strict=True):
        chex.assert_trees_all_equal(stream(step), batch)


def test_crops_go_on_bitwise_wherever_a_run_was_cut(photo_stream):
    straight = photo_stream(jitter=IMAGENET_JITTER)
    expected, states = [], []
    for step in range(6):
        states.append(straight.get_state())
        expected.append(straight(step))
    for cut, state in enumerate(states):
        resumed = photo_stream(jitter=IMAGENET_JITTER)
        resumed.set_state(state)
        for step in range(cut, 6):
            chex.assert_trees_all_equal(resumed(step), expected[step])
        resumed.close()


def test_eight_devices_have_the_crops_of_one(photo_stream):
    stream, straight = photo_stream(), photo_stream()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    stream.place(NamedSharding(mesh, PartitionSpec()))
    for step in range(3):
        chex.assert_trees_all_equal(jax.device_get(stream(step)), jax.device_get(straight(step)))


def test_the_state_of_a_stream_of_another_image_size_is_refused(photo_stream):
    stream = photo_stream()
    chex.assert_trees_all_equal_shapes_and_dtypes(stream.blank(), stream(0))
    with pytest.raises(UsageError, match="state: is of a stream with another arch image size, another weights image s"):
        photo_stream(side=SIDE + 1).set_state(stream.get_state())


def test_a_broken_image_ends_the_stream_with_its_number(photo_stream, photos):
    stream = photo_stream(files=[*photos[:19], photos[19][:50]])
    with pytest.raises(UsageError) as error:
        for step in range(3):
            stream(step)
    assert error.value.sentence == "image 19 of the split 'train' of 'photos' cannot be decoded"
    assert_threads_end()


def test_every_core_decodes_and_a_gigabyte_waits(stored, photo_stream, monkeypatch):
    monkeypatch.setattr(stream_module.os, "cpu_count", lambda: 6)

    def reading(split, batch_size):
        feeds = {name: epoch_batches(split, jax.random.key(0), batch_size, *RECIPE)._feeds for name in ("a", "b")}
        return stream_module._reading(split, feeds)

    large = StoredSplit("large", "train", [None] * 1024, (224, 224, 3), resized=True)
    assert reading(stored, 8) == (4, 16)
    assert reading(large, 8) == (6, 16)
    # Two batches of 256 are 77 MB.
    assert reading(large, 256) == (6, 13)
    assert reading(large, 1024) == (6, 6)
