"""The papers' recipes: their schedules, their optimisers of network weights, and the presets for retraining."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax


def cosine(peak: float, floor: float, periods: int, period: int = 1, *, warmup: int = 0) -> optax.Schedule:
    """Cosine from `peak` towards `floor` in equal stairs, as the papers' recipes have it (a stair an epoch).

    A warm-up takes the place of its first stairs, as in the search of `PC-DARTS <https://arxiv.org/abs/1907.05737>`_ on
    ImageNet: of n stairs, stair e has ``peak (e + 1) / n``.

    Args:
      peak: value in the first stair.
      floor: value that the stair after the last would have, and that all later steps have.
      periods: number of stairs.
      period: steps in a stair.
      warmup: stairs of the warm-up.

    Returns:
      A schedule of the step.

    Example:
      >>> schedule = cosine(0.1, 0.0, 50, 100, warmup=5)
      >>> [round(float(schedule(100 * epoch + 99)), 6) for epoch in (0, 4, 25)]
      [0.02, 0.1, 0.05]
    """

    def schedule(step: Any) -> Any:
        stair = step // period
        done = jnp.minimum(stair, periods) / periods
        # Equal to (1 + cos(pi * done)) / 2, but in float32 that has no digits left near the end.
        down = floor + (peak - floor) * jnp.cos(jnp.pi / 2 * done) ** 2
        return jnp.where(stair < warmup, peak * (stair + 1) / warmup, down) if warmup else down

    return schedule


def linear(first: float, last: float, periods: int, period: int = 1) -> optax.Schedule:
    """From `first` to `last` in equal stairs, both included, such as the temperature of GDAS (a stair an epoch).

    Args:
      first: value in the first stair.
      last: value in the last stair, and after it.
      periods: number of stairs; a single one has the value `first`.
      period: steps in a stair.

    Returns:
      A schedule of the step.

    Example:
      >>> schedule = linear(10.0, 0.0, 11, 100)
      >>> float(schedule(399)), float(schedule(1099))
      (7.0, 0.0)
    """

    def schedule(step: Any) -> Any:
        done = jnp.minimum(step // period, periods - 1) / max(periods - 1, 1)
        return first + (last - first) * done

    return schedule


def geometric(first: float, last: float, periods: int, period: int = 1) -> optax.Schedule:
    """From `first` to `last` in stairs of the same ratio, both included, such as the temperature of EnTranNAS.

    Args:
      first: value in the first stair, above 0.
      last: value in the last stair, and after it; above 0.
      periods: number of stairs; a single one has the value `first`.
      period: steps in a stair.

    Returns:
      A schedule of the step.

    Example:
      >>> schedule = geometric(1.0, 0.25, 3, 100)
      >>> float(schedule(150)), float(schedule(250))
      (0.5, 0.25)
    """
    ratio = (last / first) ** (1 / max(periods - 1, 1))
    return optax.exponential_decay(first, period, ratio, staircase=True, end_value=last if periods > 1 else first)


def ramp(peak: float, periods: int, period: int = 1) -> optax.Schedule:
    """From 0 towards `peak` in equal stairs, such as the drop-path of the papers' code (a stair an epoch).

    Args:
      peak: value that the stair after the last would have, and that all later steps have.
      periods: number of stairs.
      period: steps in a stair.

    Returns:
      A schedule of the step.

    Example:
      >>> schedule = ramp(0.3, 600, 100)
      >>> [round(float(schedule(100 * epoch)), 4) for epoch in (0, 300, 599)]
      [0.0, 0.15, 0.2995]
    """
    return linear(0.0, peak, periods + 1, period)


def warmup_linear(peak: float, periods: int, period: int = 1, *, ends: int) -> optax.Schedule:
    """Up to `peak` in equal stairs, then straight down to 0, of which the last stairs are flatter.

    The schedule of PC-DARTS on ImageNet (`Xu et al. <https://arxiv.org/abs/1907.05737>`_, section 4.3; the flat end is
    that of its released code), where a stair is an epoch, 250 are all and 5 the ends. With E stairs and n at each end
    it is, at stair e, ``peak (e + 1) / n`` for the first n, ``peak (E - e) / (n (E - n))`` for the last n, and
    ``peak (E - n - e) / (E - n)`` between.

    Args:
      peak: value in the last stair of the ascent.
      periods: number of stairs.
      period: steps in a stair.
      ends: stairs of the ascent, and of the flat end; a run of fewer stairs ends in the ascent.

    Returns:
      A schedule of the step; 0 after the last stair.

    Example:
      >>> schedule = warmup_linear(0.5, 250, ends=5)
      >>> [round(float(schedule(epoch)), 4) for epoch in (0, 4, 5, 100, 249)]
      [0.1, 0.5, 0.4898, 0.2959, 0.0004]
    """

    def schedule(step: Any) -> Any:
        stair = jnp.minimum(step // period, periods)
        left, long = periods - stair, max(periods - ends, 1)
        down = jnp.where(left > ends, (left - ends) / long, left / (ends * long))
        return peak * jnp.where(stair < min(ends, periods), (stair + 1) / ends, down)

    return schedule


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    clip_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD as the papers' code has it: clip, then L2 decay added to the gradient, then momentum.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: factor of the running sum of gradients.
      weight_decay: L2 factor, on every parameter.
      nesterov: whether the momentum looks ahead.
      clip_norm: largest global norm of the gradient, or None.

    Returns:
      The transform.
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(
        clip, optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov=nesterov)
    )


def rmsprop(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, clip_norm: float | None = None
) -> optax.GradientTransformationExtraArgs:
    """RMSProp as TensorFlow has it and NAS-Bench-101 used it: decay 0.9, epsilon 1 within the root, squares from 1.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: factor of the running sum of scaled gradients.
      weight_decay: L2 factor, on every parameter.
      clip_norm: largest global norm of the gradient, or None.

    Returns:
      The transform.
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    scaled = optax.rmsprop(learning_rate, decay=0.9, eps=1.0, initial_scale=1.0, momentum=momentum)
    return optax.chain(clip, optax.add_decayed_weights(weight_decay), scaled)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published recipe; each field is also one of `RetrainConfig`, where None stands for what is written here.

    Attributes:
      epochs: passes over the training images.
      batch_size: images in a batch.
      channels: width of the first stage.
      cells: cells in each stage of NAS-Bench-201 and of NAS-Bench-1Shot1; for DARTS the number of layers.
      learning_rate: peak of the schedule.
      schedule: "cosine" to 0; or "warmup_linear", see the function of that name. A stair an epoch.
      optimizer: "sgd" or "rmsprop", see the functions of these names; with momentum 0.9.
      nesterov: whether the momentum looks ahead, of SGD.
      weight_decay: L2 factor, on every parameter.
      clip_norm: largest global norm of the gradient; 0 for any.
      cutout: side in pixels of the square blanked in training images; 0 for none.
      image_size: pixels of a side that every image is cropped and resized to; 0 for the size it has.
      jitter: whether brightness, contrast, saturation and hue of training images vary.
      drop_path: probability of dropping a branch of a cell; 0 at first and growing in a straight line, a stair an
        epoch, so that it would be reached after the last.
      auxiliary_weight: factor of the loss of the auxiliary head, which there is if it is not 0.
      label_smoothing: share of the target that is spread evenly over all classes.
      stem: "cifar", or "imagenet", which makes the images 8 times smaller.
    """

    epochs: int
    batch_size: int
    channels: int
    cells: int
    learning_rate: float
    weight_decay: float
    schedule: str = "cosine"
    optimizer: str = "sgd"
    nesterov: bool = False
    clip_norm: float = 0.0
    cutout: int = 0
    image_size: int = 0
    jitter: bool = False
    drop_path: float = 0.0
    auxiliary_weight: float = 0.0
    label_smoothing: float = 0.0
    stem: str = "cifar"


# What the papers report with each, and what it costs where that is known.
PRESETS = {
    # NAS-Bench-201 (https://arxiv.org/abs/2001.00326), table 1, on all training images; the networks of its tables are
    # the means of three seeds. Its best cells have 5.63 % error on CIFAR-10, 26.49 % on CIFAR-100 and 52.69 % on
    # ImageNet16-120; GAEA's (single-level, searched on each), looked up there, 5.90 ± 0.29, 26.57 ± 0.13 and 53.64 %
    # (table 2 of its paper). 39,200 steps on CIFAR-10.
    "nas_bench_201": Preset(
        epochs=200,
        batch_size=256,
        channels=16,
        cells=5,
        learning_rate=0.1,
        weight_decay=5e-4,
        nesterov=True,
    ),
    # The same with a cosine of 12 epochs, the benchmark's cheap estimate of the above.
    "nas_bench_201_short": Preset(
        epochs=12,
        batch_size=256,
        channels=16,
        cells=5,
        learning_rate=0.1,
        weight_decay=5e-4,
        nesterov=True,
    ),
    # NAS-Bench-101 (https://arxiv.org/abs/1902.09635), the defaults of its released code. It trained each cell three
    # times on 40,000 images of CIFAR-10; here all training images are. Its best cell has 94.32 % mean test accuracy,
    # and the best single trainings in the spaces of NAS-Bench-1Shot1 have 5.45, 5.76 and 5.34 % error (released code of
    # GAEA). 21,060 steps on CIFAR-10; in a sample of 30,001 cells from 5 to 90 minutes of a TPU each, 26 in the median.
    # There BatchNorm kept 0.997 of its statistics, 0.9 here; the cosine fell every step, and the convolutions started
    # from a normal distribution.
    "nas_bench_101": Preset(
        epochs=108,
        batch_size=256,
        channels=128,
        cells=3,
        learning_rate=0.2,
        weight_decay=1e-4,
        optimizer="rmsprop",
    ),
    # GAEA (https://arxiv.org/abs/2004.07802), appendix C.1.2, on all training images of CIFAR-10. Its table 1 reports
    # 2.50 ± 0.06 % error (best 2.39 %; 3.7 M parameters) for the cell of GAEA PC-DARTS and 2.57 ± 0.07 % for that of
    # PC-DARTS. 234,600 steps, 1.7e16 multiply-adds for the forward passes alone; GPU days are given for searches only.
    # The released code's defaults are a batch of 96 and a drop-path of 0.2, its README passes 0.3; which batch the
    # table is of is not known.
    "darts_cifar10": Preset(
        epochs=600,
        batch_size=128,
        channels=36,
        cells=20,
        learning_rate=0.025,
        weight_decay=3e-4,
        clip_norm=5.0,
        cutout=16,
        drop_path=0.3,
        auxiliary_weight=0.4,
    ),
    # PC-DARTS (https://arxiv.org/abs/1907.05737), section 4.3 and its script for ImageNet, which GAEA uses. GAEA's
    # tables 1 and 5 report 24.0 % top-1 error (5.6 M parameters) for its search on ImageNet and 24.3 % for that on
    # CIFAR-10, against 24.2 and 25.1 % of PC-DARTS. 313,000 steps, 2e17 multiply-adds for the forward passes alone;
    # GPU days are given for searches only. The captions of those tables have cutout and no label smoothing, the script
    # label smoothing and no cutout, as here.
    "darts_imagenet": Preset(
        epochs=250,
        batch_size=1024,
        channels=48,
        cells=14,
        learning_rate=0.5,
        weight_decay=3e-5,
        schedule="warmup_linear",
        clip_norm=5.0,
        image_size=224,
        jitter=True,
        auxiliary_weight=0.4,
        label_smoothing=0.1,
        stem="imagenet",
    ),
}

# The preset for networks of a space where none is named.
USUAL_PRESETS = {
    "nas_bench_201": "nas_bench_201",
    "nas_bench_201_nozero": "nas_bench_201",
    "darts": "darts_cifar10",
    "darts_nozero": "darts_cifar10",
    "nasp": "darts_cifar10",
    "nas_bench_1shot1_1": "nas_bench_101",
    "nas_bench_1shot1_2": "nas_bench_101",
    "nas_bench_1shot1_3": "nas_bench_101",
}
