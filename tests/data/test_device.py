import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gaea_jax.data import (
    Augmentation,
    Dataset,
    Split,
    TrainValid,
    epoch_batches,
    eval_batches,
    first_and_last_half,
    normalise,
    random_batches,
    search_source,
)
from gaea_jax.errors import UsageError

SIZE, BATCH = 20, 8
STEPS = 3  # an epoch: 20 images in batches of 8
HALVES = TrainValid(np.array([19, *range(8)], np.int32), np.arange(8, 19, dtype=np.int32))
RECIPE = (Augmentation(flip=True, pad=1, cutout=2), (0.5,), (0.25,))


@pytest.fixture(scope="module")
def split():
    """Each image has its number as label and as the value of all its pixels."""
    labels = np.arange(SIZE, dtype=np.int32)
    return Split(np.broadcast_to(labels[:, None, None, None], (SIZE, 4, 4, 1)).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def dataset(split):
    augmentation, mean, std = RECIPE
    return Dataset("numbers", split, split, SIZE, mean, std, augmentation)


def single_level(dataset, seed=0, *, order="alternating", batch_size=BATCH):
    return search_source(dataset, jax.random.key(seed), batch_size, objective="single-level", order=order)


def bilevel(dataset, batch_size=BATCH, **options):
    options = {"objective": "bilevel", "order": "alternating", "train_valid": HALVES, **options}
    return search_source(dataset, jax.random.key(0), batch_size, **options)


@pytest.fixture(scope="module")
def source(dataset):
    return single_level(dataset)


def test_an_epoch_shows_every_image_and_is_filled_up_with_its_first(source):
    assert source.weights.order.steps_per_epoch == STEPS
    orders = []
    for epoch in range(3):
        seen = np.concatenate([source.weights(epoch * STEPS + i)[1] for i in range(STEPS)])
        assert sorted(seen[:SIZE]) == list(range(SIZE))
        chex.assert_trees_all_equal(seen[SIZE:], seen[: STEPS * BATCH - SIZE])
        orders.append(tuple(seen))
    assert len(set(orders)) == 3


def test_random_batches_are_drawn_anew_without_repetition(source):
    steps = 2000
    drawn = np.asarray(jax.jit(lambda s: jax.vmap(s.arch.order.indices)(jnp.arange(steps)))(source))
    assert all(len(set(batch)) == BATCH for batch in drawn.tolist())
    # Each image is in a batch with probability 2/5, whatever the batch before held.
    held = np.zeros((steps, SIZE), bool)
    held[np.arange(steps)[:, None], drawn] = True
    rate, again = held.mean(0), (held[1:] & held[:-1]).mean(0)
    chex.assert_trees_all_close(rate, np.full(SIZE, 0.4), atol=0.06)
    chex.assert_trees_all_close(again, np.full(SIZE, 0.16), atol=0.06)


def test_a_batch_is_the_augmented_images_with_their_labels(split, source):
    images, labels = source.weights(1)
    chex.assert_shape((images, labels), [(BATCH, 4, 4, 1), (BATCH,)])
    assert images.dtype == jnp.float32 and labels.dtype == jnp.int32
    chex.assert_trees_all_equal(labels, source.weights.order.indices(1))
    # All pixels of an image are its label, the padding's black or the cutout's mean.
    numbers = np.rint((np.asarray(images) * 0.25 + 0.5) * 255).astype(int)
    kept = (numbers == np.asarray(labels)[:, None, None, None]).reshape(BATCH, -1)
    other = np.isin(numbers, [0, 128]).reshape(BATCH, -1)
    assert (kept | other).all() and kept.any(1).all() and not kept.all()


def test_streams_steps_and_keys_differ_and_calls_repeat(dataset, source):
    images = np.asarray(source(4)["weights"][0])
    chex.assert_trees_all_equal(source(4), source(4))
    other_key = single_level(dataset, 1)
    others = (source(4)["arch"], source(5)["weights"], source(4 + STEPS)["weights"], other_key(4)["weights"])
    for other, _ in others:
        assert not np.array_equal(images, other)
    # At step 0 both streams are at the head of an order: only their keys tell them apart.
    assert not np.array_equal(source(0)["weights"][0], source(0)["arch"][0])
    chex.assert_trees_all_equal(other_key(4), single_level(dataset, 1)(4))


def test_augmentation_differs_between_epochs(split):
    # One image, so that only the augmentation is left to chance.
    one = epoch_batches(Split(split.images[7:8], split.labels[7:8]), jax.random.key(0), 1, *RECIPE)
    assert len({np.asarray(one(step)[0]).tobytes() for step in range(10)}) > 3


def test_scan_equals_python(source):
    steps = 2 * STEPS

    @jax.jit
    def scanned(source):
        return jax.lax.scan(lambda carry, step: (carry, source(step)), None, jnp.arange(steps))[1]

    one_by_one = jax.tree.map(lambda *batches: jnp.stack(batches), *[source(i) for i in range(steps)])
    chex.assert_trees_all_equal(scanned(source), one_by_one)


def test_images_are_arguments_of_the_program_and_shared_by_the_streams(source):
    assert source.weights.images is source.arch.images

    def constants(function, *args):
        return [constant.shape for constant in jax.make_jaxpr(function)(*args).consts]

    images = source.weights.images.shape
    assert images not in constants(lambda source, step: source(step), source, 0)
    assert images in constants(lambda step: source(step), 0), "what the test would see otherwise"


def test_sharded_batches_equal_unsharded(source):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    over_batch = NamedSharding(mesh, PartitionSpec("batch"))
    sharded = jax.jit(lambda source, step: source(step), out_shardings=over_batch)(source, 5)
    assert len(sharded["weights"][0].sharding.device_set) == 8
    chex.assert_trees_all_equal(jax.device_get(sharded), jax.device_get(source(5)))


def test_joint_has_no_arch_stream(dataset, source):
    joint = single_level(dataset, order="joint")
    assert joint(2).keys() == {"weights"}
    chex.assert_trees_all_equal(joint(2)["weights"], source(2)["weights"])


@pytest.mark.parametrize("objective", ["bilevel", "bilevel-unrolled"])
def test_bilevel_streams_come_from_their_own_part(dataset, objective):
    source = bilevel(dataset, objective=objective)
    assert source.weights.images is source.arch.images
    assert source.weights.recipe.augmentation == source.arch.recipe.augmentation == dataset.augmentation
    assert source.weights.order.steps_per_epoch == 2
    seen = np.concatenate([source(step)["weights"][1] for step in range(2)])
    assert sorted(seen[:9]) == sorted(HALVES.train)
    drawn = np.stack([source(step)["arch"][1] for step in range(40)])
    assert set(drawn.ravel().tolist()) == set(HALVES.valid.tolist())
    # With replacement: eight different ones of eleven would come with probability 0.03.
    assert np.mean([len(set(batch)) < BATCH for batch in drawn.tolist()]) > 0.8


def test_bilevel_without_parts_takes_the_first_and_the_last_half(dataset):
    halves = first_and_last_half(SIZE)
    for step in range(3):
        found, expected = (bilevel(dataset, train_valid=parts)(step) for parts in (None, halves))
        chex.assert_trees_all_equal(found, expected)
        assert set(found["arch"][1].tolist()) <= set(range(10, 20))


def test_whole_split_as_one_batch(split):
    for make in (epoch_batches, random_batches):
        batches = make(split, jax.random.key(0), SIZE, *RECIPE)
        assert batches.order.steps_per_epoch == 1
        assert sorted(batches.order.indices(3).tolist()) == list(range(SIZE))


@pytest.mark.parametrize("batch_size", [BATCH, 5, SIZE + 3])
def test_eval_batches_cover_the_split_once_in_order(split, batch_size):
    mean, std = (0.5,), (0.25,)
    seen, pixels = [], []
    for images, labels, mask in eval_batches(split, batch_size, mean, std):
        chex.assert_shape((images, labels, mask), [(batch_size, 4, 4, 1), (batch_size,), (batch_size,)])
        assert images.dtype == jnp.float32 and labels.dtype == jnp.int32 and mask.dtype == bool
        seen += labels[mask].tolist()
        pixels.append(images[mask])
    assert seen == list(range(SIZE))
    expected = normalise(jnp.asarray(split.images), mean, std)
    chex.assert_trees_all_equal(jnp.concatenate(pixels), expected)


@pytest.mark.parametrize("batch_size", [0, -3, SIZE + 1])
def test_batch_size_out_of_range(split, dataset, batch_size):
    message = f"batch_size: must be between 1 and the 20 images there are, not {batch_size}"
    for make in (epoch_batches, random_batches):
        with pytest.raises(UsageError, match=message):
            make(split, jax.random.key(0), batch_size, *RECIPE)
    with pytest.raises(UsageError, match=message):
        single_level(dataset, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [0, 10])
def test_a_batch_larger_than_a_part_is_refused(dataset, batch_size):
    message = "batch_size: must be between 1 and 9: there are 9 training and 11 validation images; it is "
    with pytest.raises(UsageError, match=message + str(batch_size)):
        bilevel(dataset, batch_size)


def test_other_errors(split, dataset):
    for objective in ("bilevel", "bilevel-unrolled"):
        with pytest.raises(UsageError, match=f'order: must be "alternating" for the objective {objective}'):
            bilevel(dataset, objective=objective, order="joint")
    with pytest.raises(
        UsageError, match="objective: 'trilevel' is unknown; known are single-level, bilevel, bilevel-un"
    ):
        bilevel(dataset, objective="trilevel")
    with pytest.raises(UsageError, match="split: applies to bilevel objectives only"):
        bilevel(dataset, objective="single-level")
    with pytest.raises(UsageError, match='order: must be "alternating" or "joint", not \'both\''):
        single_level(dataset, order="both")
    with pytest.raises(UsageError, match="batch_size: must be 1 or more, not 0"):
        eval_batches(split, 0, (0.5,), (0.25,))
