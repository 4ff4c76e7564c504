"""What the configurations of searching and retraining share: fields, checks, data, length and folder of a run."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax import processes
from gaea_jax.data import IMAGENET_JITTER, Dataset, load_dataset, open_dataset
from gaea_jax.errors import UsageError
from gaea_jax.train.folder import RunFolder
from gaea_jax.train.loop import LOOPS

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REPORTS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The fields of every training run.

    Attributes:
      dataset: "digits", or the name of a TFDS image set.
      data_dir: folder of prepared TFDS sets.
      stream: leave the images on disk and read them as they are needed, for sets that do not fit on the device.
      epochs: passes over the training images; this or `steps`.
      steps: number of steps; this or `epochs`. The schedules then have a stair a step, not an epoch.
      seed: decides the initial weights and all batches.
      cutout: side in pixels of the square blanked in training images; 0 for none, the default of a search.
      image_size: side in pixels that every image is cropped and resized to, which needs `stream`; 0 for images as they
        are stored, the default of a search.
      jitter: vary brightness, contrast, saturation and hue of training images; a search does not unless it is set.
      dtype: compute type, "float32" or "bfloat16".
      loop: "python", "scan", or "auto" for what suits the source; see `run`.
      report_every: steps between reports and checkpoints; by default a fiftieth of the run.
      out: folder of the run. Without, the library writes nothing, and the scripts take one in ``runs/``.
      resume: continue the run in `out`.
      tensorboard: also write the reports for TensorBoard, into ``tensorboard/`` of `out`.
    """

    dataset: str = "digits"
    data_dir: pathlib.Path | None = None
    stream: bool = False
    epochs: int | None = None
    steps: int | None = None
    seed: int = 0
    cutout: int | None
    image_size: int | None
    jitter: bool | None
    dtype: str = "float32"
    loop: str = "auto"
    report_every: int | None = None
    out: pathlib.Path | None = None
    resume: bool = False
    tensorboard: bool = False

    def fields(self) -> dict[str, Any]:
        """All fields as JSON values."""
        fields = dataclasses.asdict(self)
        return {name: str(v) if isinstance(v, pathlib.Path) else v for name, v in fields.items()}

    def identity(self) -> dict[str, Any]:
        """The fields that decide the numbers of a run, by flag; a resumed run must have the same."""
        # What a file of a split says, not where it is, see `open_folder`.
        free = ("data_dir", "table", "split", "report_every", "out", "resume", "tensorboard")
        return {f"--{name.replace('_', '-')}": v for name, v in self.fields().items() if name not in free}


class Length(NamedTuple):
    """How long a run is.

    Attributes:
      until: number of steps.
      steps_per_epoch: steps in a pass over the training images.
      periods: stairs of the schedules.
      period: steps in a stair.
      report_every: steps between two reports.
    """

    until: int
    steps_per_epoch: int
    periods: int
    period: int
    report_every: int


def check_run(config: RunConfig, batch_size: int, devices: int, *, positive: tuple[str, ...] = ()) -> None:
    """Refuses values that no run can have.

    Args:
      config: the configuration.
      batch_size: images in a batch.
      devices: number of devices that share a batch.
      positive: further numeric fields that must be more than 0; every other number must be 0 or more.

    Raises:
      UsageError: on the first wrong field.
    """
    positive += ("epochs", "steps", "batch_size", "report_every")
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not (math.isfinite(value) and value >= 0 and (value > 0 or name not in positive)):
            raise UsageError(name, f"must be {'more than 0' if name in positive else '0 or more'}, not {value}")
    for name, accepted in (("loop", LOOPS), ("dtype", DTYPES)):
        if getattr(config, name) not in accepted:
            raise UsageError(name, f"{getattr(config, name)!r} is unknown; known are {', '.join(accepted)}")
    if config.stream and config.loop == "scan":
        raise UsageError("loop", 'must be "python" or "auto" where the images are streamed')
    if config.epochs is not None and config.steps is not None:
        raise UsageError("steps", "cannot be given together with a number of epochs")
    if batch_size % devices:
        raise UsageError("batch_size", f"must be a multiple of the {devices} devices, not {batch_size}")
    if config.resume and config.out is None:
        raise UsageError("resume", "needs the folder of the run to continue, --out")


def load_data(config: RunConfig, *, test: bool) -> Dataset:
    """The data set of a run, with its augmentation.

    Args:
      config: the configuration.
      test: whether the run needs the test images; if not, those of TFDS are left on disk.

    Returns:
      The data set, on the host or left on disk.

    Raises:
      UsageError: on ``dataset``, ``data_dir``, ``stream``, ``image_size``, ``cutout`` or ``jitter``.
    """
    if config.stream:
        dataset = open_dataset(config.dataset, config.data_dir, config.image_size or None)
    elif config.image_size:
        raise UsageError("image_size", "applies to images that stay on disk; it needs --stream, or 0")
    else:
        dataset = load_dataset(config.dataset, config.data_dir, test=test)
    channels = dataset.train.image_shape[-1]
    if config.jitter and channels != 3:
        raise UsageError("jitter", f"needs images of 3 channels; those of {config.dataset!r} have {channels}")
    side = min(dataset.train.image_shape[:2])
    cutout = config.cutout or 0
    if cutout >= side:
        raise UsageError("cutout", f"must be less than the {side} pixels of an image, not {cutout}")
    jitter = IMAGENET_JITTER if config.jitter else None
    augmentation = dataclasses.replace(dataset.augmentation, cutout=cutout, jitter=jitter)
    return dataclasses.replace(dataset, augmentation=augmentation)


def run_length(config: RunConfig, images: int, batch_size: int, schedule_epochs: int | None = None) -> Length:
    """The length of a run, and the stairs of its learning rate.

    Args:
      config: a configuration with either epochs or steps.
      images: number of training images.
      batch_size: images in a batch.
      schedule_epochs: stairs of an epoch each, if they are not to follow from the length.

    Returns:
      The `Length`.

    Raises:
      UsageError: on ``batch_size``, if there are fewer images.
    """
    if batch_size > images:
        raise UsageError("batch_size", f"must be at most the number of training images, {images}, not {batch_size}")
    steps_per_epoch = -(-images // batch_size)
    until = config.steps if config.steps is not None else (config.epochs or 0) * steps_per_epoch
    if schedule_epochs or config.epochs:
        periods, period = schedule_epochs or config.epochs or 0, steps_per_epoch
    else:
        periods, period = until, 1
    return Length(until, steps_per_epoch, periods, period, config.report_every or -(-until // REPORTS))


def open_folder(config: RunConfig, digests: Mapping[str, str | None] | None = None) -> RunFolder | None:
    """The folder of a run: a new one, or that of the run to resume.

    Args:
      config: the configuration.
      digests: what else decides the numbers of the run, by flag, such as the content of a file.

    Returns:
      The folder; None if there is to be none.

    Raises:
      UsageError: on ``out``, ``resume`` or ``tensorboard``; nothing has been overwritten.
    """
    if config.out is None:
        if config.tensorboard:
            raise UsageError("tensorboard", "needs the folder of the run, --out")
        return None
    identity = {**config.identity(), **(digests or {})}
    out, tensorboard = config.out, config.tensorboard

    def opened() -> RunFolder:
        if config.resume:
            return RunFolder.reopen(out, identity, tensorboard)
        return RunFolder.create(out, config.fields(), identity, tensorboard)

    folder = processes.first(opened) or RunFolder(out, identity)
    if not all(seen for (seen,) in processes.agreed((out / "config.json").exists())):
        raise UsageError("out", f"{out} must be on a file system that all processes share")
    return folder


def compute_dtype(config: RunConfig) -> jax.typing.DTypeLike:
    """The compute type of a run."""
    return DTYPES[config.dtype]
