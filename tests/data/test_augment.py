import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.data import IMAGENET_JITTER, Augmentation, Jitter, Recipe, augment, cutout, normalise, prepare
from gaea_jax.data.augment import _CROP, _JITTER
from gaea_jax.errors import UsageError

BATCH, HEIGHT, WIDTH, CHANNELS, PAD = 400, 6, 7, 2, 1


@pytest.fixture(scope="module")
def images():
    """Every pixel of an image is different, and none is black."""
    one = np.arange(1, 1 + HEIGHT * WIDTH * CHANNELS, dtype=np.uint8).reshape(HEIGHT, WIDTH, CHANNELS)
    return np.tile(one, (BATCH, 1, 1, 1))


def windows(image):
    """All crops of an image padded with black, and of its mirror image: (flip, row, column) -> crop."""
    return {
        (flip, row, column): np.pad(mirrored, ((PAD, PAD), (PAD, PAD), (0, 0)))[
            row : row + HEIGHT, column : column + WIDTH
        ]
        for flip, mirrored in ((0, image), (1, image[:, ::-1]))
        for row in range(2 * PAD + 1)
        for column in range(2 * PAD + 1)
    }


def test_augmented_images_are_shifted_windows_each_equally_often(images):
    out = np.asarray(jax.jit(augment, static_argnums=2)(jax.random.key(0), images, Augmentation(flip=True, pad=PAD)))
    assert out.dtype == np.uint8
    counts = {place: int((out == crop).all((1, 2, 3)).sum()) for place, crop in windows(images[0]).items()}
    assert sum(counts.values()) == BATCH
    # 18 windows, 22 of 400 expected in each with a deviation of 4.6.
    assert min(counts.values()) >= 5 and max(counts.values()) <= 45


def test_only_what_is_asked_for(images):
    key = jax.random.key(1)
    chex.assert_trees_all_equal(np.asarray(augment(key, images, Augmentation(flip=False, pad=0))), images)
    flipped = np.asarray(augment(key, images, Augmentation(flip=True, pad=0)))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    chex.assert_trees_all_equal(flipped[~mirrored], images[~mirrored])
    assert abs(mirrored.mean() - 0.5) < 0.1


VALUES = np.repeat(np.arange(256, dtype=np.uint8), 2).reshape(1, 256, 1, 2)


def test_normalise_is_the_textbook_formula_for_every_byte():
    mean, std = (0.4914, 0.1), (0.247, 0.3)
    out = normalise(jnp.asarray(VALUES), mean, std)
    assert out.dtype == jnp.float32
    chex.assert_trees_all_close(np.asarray(out), (VALUES / 255 - mean) / std, atol=1e-6)


def test_normalise_gives_the_same_bits_in_every_program():
    def norm(images):
        return normalise(images, (0.4914, 0.1), (0.247, 0.3))

    alone = norm(jnp.asarray(VALUES))
    chex.assert_trees_all_equal(jax.jit(norm)(VALUES), alone)
    stacked = jax.jit(lambda x: jax.lax.scan(lambda carry, x: (carry, norm(x)), 0, x[None])[1])(VALUES)
    chex.assert_trees_all_equal(stacked[0], alone)


@pytest.mark.parametrize("side", [1, 3, 4, 20])
def test_cutout_blanks_one_square_clipped_at_the_border(side):
    out = np.asarray(cutout(jax.random.key(2), jnp.ones((BATCH, HEIGHT, WIDTH, CHANNELS)), side))
    blank = out == 0
    assert (blank == blank[..., :1]).all(), "all channels alike"
    possible = set()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            square = np.zeros((HEIGHT, WIDTH), bool)
            top, left = row - side // 2, column - side // 2
            square[max(top, 0) : top + side, max(left, 0) : left + side] = True
            possible.add(square.tobytes())
    drawn = {image[..., 0].tobytes() for image in blank}
    assert drawn == possible


def test_prepare_pads_black_and_blanks_with_the_mean(images):
    mean, std = (0.25, 0.5), (0.5, 0.25)
    prepared = jax.jit(prepare, static_argnums=(2, 3, 4))
    out = np.asarray(prepared(jax.random.key(3), images, Augmentation(False, PAD, cutout=3), mean, std))
    assert out.dtype == np.float32
    black, bright = -np.array(mean) / np.array(std), (84 / 255 - np.array(mean)) / np.array(std)
    padding = np.isclose(out, black).all(-1)
    blanked = (out == 0).all(-1)
    assert (padding[:, 1:-1, 1:-1] == 0).all() and padding.any()
    assert blanked.any((1, 2)).all() and blanked.sum((1, 2)).max() == 9
    assert (out <= np.maximum(bright, 0) + 1e-6).all()
    without = prepared(jax.random.key(3), images, Augmentation(False, PAD), mean, std)
    chex.assert_trees_all_equal(np.where(blanked[..., None], 0, without), out)


@pytest.fixture(scope="module")
def colours():
    return np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)


THREE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_jitter_comes_between_the_crop_and_the_normalisation(colours):
    prepared = jax.jit(prepare, static_argnums=(2, 3, 4))
    without = prepared(jax.random.key(4), colours, Augmentation(True, PAD, cutout=2), *THREE)
    none = prepared(jax.random.key(4), colours, Augmentation(True, PAD, cutout=2, jitter=Jitter(0, 0, 0, 0)), *THREE)
    chex.assert_trees_all_close(none, without, atol=1e-4)
    some = np.asarray(prepared(jax.random.key(4), colours, Augmentation(True, PAD, 2, IMAGENET_JITTER), *THREE))
    blanked = (np.asarray(without) == 0).all(-1)
    assert (some[blanked] == 0).all() and not np.allclose(some[~blanked], np.asarray(without)[~blanked], atol=0.1)
    mean, std = map(np.array, THREE)
    assert (some[~blanked] >= -mean / std - 1e-5).all() and (some[~blanked] <= (1 - mean) / std + 1e-5).all()


def test_the_numbers_of_a_crop_follow_from_the_key_the_step_and_the_place():
    def draws(step, batch_size, seed=0):
        return np.asarray(Recipe(jax.random.key(seed), Augmentation(True, 0), *THREE).crop_draws(step, batch_size))

    some = draws(5, 8)
    assert some.shape == (8, 10, 4) and some.dtype == np.float32 and some.min() >= 0 and some.max() < 1
    assert len(np.unique(some)) == some.size
    chex.assert_trees_all_equal(draws(5, 3), some[:3])
    for other in (draws(6, 8), draws(5, 8, seed=1)):
        assert not np.isin(other, some).any()


def test_the_streams_of_a_step_are_apart():
    key = jax.random.key(0)
    keys = [*jax.random.split(key), jax.random.fold_in(key, _CROP), jax.random.fold_in(key, _JITTER)]
    assert len({tuple(jax.random.key_data(each).tolist()) for each in keys}) == 4


def test_errors(images):
    with pytest.raises(UsageError, match="pad: must be 0 or more pixels, not -1"):
        Augmentation(flip=False, pad=-1)
    with pytest.raises(UsageError, match="cutout: must be 0 or more pixels, not -2"):
        Augmentation(flip=False, pad=0, cutout=-2)
    with pytest.raises(UsageError, match=r"images: must be uint8 in 0\.\.255, not float32"):
        normalise(jnp.ones((1, 2, 2, 2)), (0.5, 0.5), (1.0, 1.0))
    with pytest.raises(UsageError, match="mean: must have one number for each of 2 channels, not 3"):
        normalise(images, (0.5, 0.5, 0.5), (1.0, 1.0))
    with pytest.raises(UsageError, match="jitter: needs images of 3 channels, not 2"):
        prepare(jax.random.key(0), images, Augmentation(False, 0, jitter=IMAGENET_JITTER), (0.5,) * 2, (1.0,) * 2)
    with pytest.raises(UsageError, match="std: must have one number for each of 2 channels, not 1"):
        normalise(images, (0.5, 0.5), (1.0,))
