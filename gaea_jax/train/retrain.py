"""Trains a derived network from scratch, with the recipe of a paper or another, and tests it at the end."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax import processes
from gaea_jax.data import epoch_batches
from gaea_jax.errors import UsageError
from gaea_jax.nets import Count, count, network
from gaea_jax.train.config import Length, RunConfig, check_run, compute_dtype, load_data, open_folder, run_length
from gaea_jax.train.drive import Record, drive
from gaea_jax.train.evaluate import accuracy_on
from gaea_jax.train.genotype import read_genotype
from gaea_jax.train.loop import Step
from gaea_jax.train.recipe import PRESETS, USUAL_PRESETS, Preset, cosine, ramp, rmsprop, sgd, warmup_linear
from gaea_jax.train.step import Metrics, accuracy, cross_entropy
from gaea_jax.versions import versions

MOMENTUM = 0.9
SCHEDULES = ("cosine", "warmup_linear")
OPTIMIZERS = ("sgd", "rmsprop")
# Stairs of the ascent of "warmup_linear" that are epochs; those that are steps are its share in the 250 of the recipe.
_WARMUP_EPOCHS, _WARMUP_SHARE = 5, 1 / 50

# ImageNet's tables have the error of the first five guesses too.
_TOP_5_ABOVE = 100

# A stream of random numbers that follows from the key of a run; those before are for its data.
_DROP_PATH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainConfig(RunConfig):
    """Which cell to train, on what, and how; see `RunConfig` for the other fields.

    `gaea_jax.train.recipe` says where the presets come from, what is reported with them, and what they cost. All have a
    momentum of 0.9.

    Attributes:
      space: name of the search space of the genotype; by default the one that its file or its JSON names, else
        "nas_bench_201" for a cell in that grammar and for any other "darts", or "nasp" if it has operations of that.
      genotype: the cell, in the grammar of the space, as JSON or by the name under which it was published; or a file
        with it, such as a search's ``result.json``.
      preset: the recipe that gives all of the following up to `stem` that are not given, `cutout`, `image_size` and
        `jitter`, and the epochs where no length is given: "nas_bench_201", "nas_bench_201_short", "nas_bench_101",
        "darts_cifar10" or "darts_imagenet". By default the first for NAS-Bench-201, the third for NAS-Bench-1Shot1 and
        "darts_cifar10" for the DARTS space.
      batch_size: images in a batch.
      channels: width of the first stage.
      cells: cells in each stage of NAS-Bench-201 and of NAS-Bench-1Shot1; for DARTS the number of layers.
      learning_rate: peak of the schedule.
      schedule: of the learning rate: "cosine" to 0; or "warmup_linear", up in 5 epochs and straight down to 0 (in runs
        of `steps`, up in a fiftieth of them).
      optimizer: "sgd", or "rmsprop" as NAS-Bench-101 set it.
      nesterov: whether the momentum looks ahead, of SGD.
      weight_decay: L2 factor, on every parameter.
      clip_norm: largest global norm of the gradient; 0 for any.
      drop_path: probability, at the end of the run, of dropping a branch of a cell; it grows from 0 in a straight line.
      auxiliary_weight: factor of the loss of the auxiliary head, which there is if it is not 0.
      label_smoothing: share of the target that is spread evenly over all classes.
      stem: "cifar", or "imagenet", which makes the images 8 times smaller.
      accumulate: split each batch into this many parts, one after the other, so that it takes less memory. The step is
        that of the whole batch, but BatchNorm has the statistics of each part.
      remat: keep less for the gradient, and compute it again.
      share_features: nodes that have the same operation of the same input share its features, and its parameters.
    """

    genotype: str
    space: str | None = None
    preset: str | None = None
    batch_size: int | None = None
    channels: int | None = None
    cells: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    optimizer: str | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    cutout: int | None = None
    image_size: int | None = None
    jitter: bool | None = None
    drop_path: float | None = None
    auxiliary_weight: float | None = None
    label_smoothing: float | None = None
    stem: str | None = None
    accumulate: int = 1
    remat: bool = False
    share_features: bool = False


@flax.struct.dataclass
class TrainState:
    """State of the training of one network.

    Attributes:
      step: int32 scalar, number of completed steps.
      params: Flax parameters, float32.
      collections: the network's other collections (``batch_stats``).
      opt_state: state of the optimiser.
      key: random key of the run; the order of the images, their augmentation and what drop-path drops follow from it
        and the step.
    """

    step: jax.Array
    params: Any
    collections: Any
    opt_state: optax.OptState
    key: jax.Array

    @classmethod
    def create(
        cls,
        net: nn.Module,
        tx: optax.GradientTransformationExtraArgs,
        image_shape: tuple[int, ...],
        key: jax.Array,
        **options: Any,
    ) -> Self:
        """The state before the first step; pure, so that ``jit`` and ``eval_shape`` can be applied to it.

        Args:
          net: a derived network.
          tx: transform over its parameters.
          image_shape: (H, W, channels) of an image.
          key: random key of the run.
          **options: further arguments of the network.

        Returns:
          The state, with ``step`` 0.
        """
        weights_key, _ = jax.random.split(key)
        collections = dict(net.init(weights_key, jnp.zeros((1, *image_shape)), train=False, **options))
        params = collections.pop("params")
        return cls(jnp.zeros((), jnp.int32), params, collections, tx.init(params), _run_key(key))


def _run_key(key: jax.Array) -> jax.Array:
    """The key that a `TrainState` created from `key` carries."""
    return jax.random.split(key)[1]


class RetrainResult(NamedTuple):
    """A trained network.

    Attributes:
      genotype: the cell.
      config: the configuration, with the genotype as text and what came from the preset filled in.
      steps: number of steps made.
      test_accuracy: percent of the test images.
      test_accuracy_top_5: percent of the test images whose class is among the first five that the network names; None
        for data sets of 100 classes or fewer.
      size: parameters and multiply-adds, without the auxiliary head.
      parameters_with_auxiliary: number of parameters that were trained; None if there was no auxiliary head.
      records: every report.
      state: the last `TrainState`.
      wall_s: seconds, summed over resumes.
    """

    genotype: Any
    config: RetrainConfig
    steps: int
    test_accuracy: float
    test_accuracy_top_5: float | None
    size: Count
    parameters_with_auxiliary: int | None
    records: list[Record]
    state: TrainState
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        optional = {
            "test_accuracy_top_5": self.test_accuracy_top_5,
            "parameters_with_auxiliary": self.parameters_with_auxiliary,
        }
        return {
            "space": self.config.space,
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "steps": self.steps,
            "genotype": str(self.genotype),
            "test_accuracy": self.test_accuracy,
            "parameters": self.size.parameters,
            "multiply_adds": self.size.multiply_adds,
            **{name: value for name, value in optional.items() if value is not None},
            "wall_s": round(self.wall_s, 3),
            "versions": versions(),
        }


def retrain(
    config: RetrainConfig,
    on_report: Callable[[Record], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> RetrainResult:
    """Trains the network of a genotype on the training images and tests it once, after the last step.

    The test is without auxiliary head and drop-path, with running statistics.

    Args:
      config: what, how and where.
      on_report: called with every report, which is also a line of ``metrics.jsonl``: ``step``, ``epoch``, means since
        the last report of ``loss``, ``accuracy`` and ``gradient_norm`` (see `make_train_step`), and ``wall_s``.
      devices: spread each batch over these; all by default, those of other processes too.

    Returns:
      The `RetrainResult`; with ``config.out`` also its folder, with ``result.json`` and plots.

    Raises:
      UsageError: an argument is wrong; nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
      DivergedError: loss or gradient is not finite.
      LostProcessError: another process of the run ended.
    """
    devices = devices if devices is not None else jax.devices()
    space, genotype = read_genotype(config.genotype, config.space)
    # The cell itself, not the file it came from: that may have changed when the run is resumed.
    config = dataclasses.replace(config, space=space.name, genotype=str(genotype))
    config, recipe = _filled(config, USUAL_PRESETS[space.name])
    _check(config, recipe, len(devices))
    dataset = load_data(config, test=True)
    length = run_length(config, dataset.train.size, recipe.batch_size)

    make_net = functools.partial(
        network,
        space,
        genotype,
        channels=recipe.channels,
        cells=recipe.cells,
        num_classes=dataset.num_classes,
        dtype=compute_dtype(config),
        stem=recipe.stem,
        shared=config.share_features,
    )
    net = make_net(auxiliary=recipe.auxiliary_weight > 0, remat=config.remat)
    tx = _optimizer(recipe, _learning_rate(config, recipe, length))
    step = make_train_step(
        net,
        tx,
        auxiliary_weight=recipe.auxiliary_weight,
        label_smoothing=recipe.label_smoothing,
        drop_path=ramp(recipe.drop_path, length.periods, length.period) if recipe.drop_path else None,
        accumulate=config.accumulate,
    )
    image_shape = dataset.train.image_shape
    key = jax.random.key(config.seed)
    # A network without paths to drop says so here.
    create = jax.jit(lambda key: TrainState.create(net, tx, image_shape, key, drop_path=recipe.drop_path))
    # Traced before the folder is made, so that what does not fit leaves nothing behind; compiled after it.
    jax.eval_shape(create, key)
    folder = open_folder(config)
    source = epoch_batches(
        dataset.train, _run_key(key), recipe.batch_size, dataset.augmentation, dataset.mean, dataset.std
    )
    finished = drive(
        step,
        create,
        key,
        source,
        length.until,
        report=lambda state, means, before: (
            {"epoch": int(state.step) / length.steps_per_epoch, **means},
            f"loss {means['loss']:.3f}  acc {means['accuracy']:.1f} %",
        ),
        report_every=length.report_every,
        description="retrain",
        folder=folder,
        resume=config.resume,
        loop=config.loop,
        devices=devices,
        on_report=on_report,
    )
    variables = {"params": finished.state.params, **finished.state.collections}
    tops = (1, 5) if dataset.num_classes > _TOP_5_ABOVE else (1,)
    tested, *among_5 = accuracy_on(net, variables, dataset.test, dataset, tops, devices)
    finished.records[-1]["test_accuracy"] = tested
    result = RetrainResult(
        genotype,
        config,
        length.until,
        tested,
        among_5[0] if among_5 else None,
        count(make_net(), image_shape),
        count(net, image_shape).parameters if recipe.auxiliary_weight else None,
        finished.records,
        finished.state,
        finished.wall_s,
    )
    if folder and processes.is_first():
        from gaea_jax import plot

        plot.training_curves(result.records, folder.path / "plots" / "loss_accuracy.png")
        folder.write_json("result.json", result.to_json())
    return result


def make_train_step(
    net: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    *,
    auxiliary_weight: float = 0.0,
    label_smoothing: float = 0.0,
    drop_path: optax.Schedule | None = None,
    accumulate: int = 1,
) -> Step:
    """Makes the step that trains a derived network.

    The loss is that of the logits, plus `auxiliary_weight` times that of the auxiliary logits. Accumulated, the batch
    is cut into parts of every so many-th image; the gradient of the step is the mean of theirs, while BatchNorm
    normalises each part by its own statistics, and averages into the running ones part after part.

    Args:
      net: a derived network, see `gaea_jax.nets.network`.
      tx: transform over its parameters.
      auxiliary_weight: factor of the auxiliary loss; more than 0 exactly if the network has an auxiliary head.
      label_smoothing: e of the targets (1 - e) one-hot + e / classes.
      drop_path: probability of dropping a branch, as a schedule of the step; None drops nothing.
      accumulate: number of parts; divides the batch size, as do the devices that share a part.

    Returns:
      ``step(state, batch) -> (state, metrics)``, pure and not yet compiled: a `TrainState`, and images
      [B, H, W, channels] with labels [B]. Metrics are float32 scalars: of the logits, not the auxiliary ones, ``loss``
      in nats with smoothed labels and ``accuracy`` in percent; and ``gradient_norm`` of the whole loss before any clip.
    """

    def loss(logits: jax.Array, y: jax.Array) -> jax.Array:
        if not label_smoothing:
            return cross_entropy(logits, y)
        targets = optax.smooth_labels(jax.nn.one_hot(y, logits.shape[-1]), label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    def gradient(
        state: TrainState, collections: Any, batch: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[Any, Any, Metrics]:
        x, y = batch
        options = {"drop_path": drop_path(state.step), "rngs": {"drop_path": key}} if drop_path else {}

        def objective(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, **collections}
            found, updated = net.apply(variables, x, train=True, mutable=list(collections), **options)
            logits, auxiliary = found if auxiliary_weight else (found, None)
            value = loss(logits, y)
            total = value if auxiliary is None else value + auxiliary_weight * loss(auxiliary, y)
            return total, (dict(updated), {"loss": value, "accuracy": accuracy(logits, y)})

        grads, (updated, metrics) = jax.grad(objective, has_aux=True)(state.params)
        return grads, updated, metrics

    def step(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, _DROP_PATH), state.step), accumulate)
        if accumulate == 1:
            grads, collections, metrics = gradient(state, state.collections, batch, keys[0])
        else:
            # Every so many-th image, so that each device that has a share of the batch has as large a one of each part.
            parts = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, accumulate, *a.shape[1:]), 0, 1), batch)

            def add(carry: Any, part: Any) -> Any:
                total, collections = carry
                grads, collections, metrics = gradient(state, collections, *part)
                return (optax.tree.add(total, grads), collections), metrics

            start = optax.tree.zeros_like(state.params), state.collections
            (total, collections), metrics = jax.lax.scan(add, start, (parts, keys))
            grads = optax.tree.scale(1 / accumulate, total)
            metrics = jax.tree.map(jnp.mean, metrics)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, collections, opt_state, state.key), metrics

    return step


def _filled(config: RetrainConfig, usual: str) -> tuple[RetrainConfig, Preset]:
    """The configuration with what its preset gives, and that recipe."""
    name = usual if config.preset is None else config.preset
    if name not in PRESETS:
        raise UsageError("preset", f"{name!r} is unknown; known are {', '.join(PRESETS)}")
    preset = dataclasses.asdict(PRESETS[name])
    if config.steps is not None:
        del preset["epochs"]
    missing = {name: value for name, value in preset.items() if getattr(config, name) is None}
    config = dataclasses.replace(config, preset=name, **missing)
    recipe = {field.name: getattr(config, field.name) for field in dataclasses.fields(Preset)}
    return config, Preset(**recipe)


def _check(config: RetrainConfig, recipe: Preset, devices: int) -> None:
    check_run(config, recipe.batch_size, devices, positive=("channels", "cells", "learning_rate", "accumulate"))
    for name in ("drop_path", "label_smoothing"):
        if not getattr(recipe, name) < 1:
            raise UsageError(name, f"must be less than 1, not {getattr(recipe, name)}")
    if recipe.schedule not in SCHEDULES:
        raise UsageError("schedule", f"{recipe.schedule!r} is unknown; known are {', '.join(SCHEDULES)}")
    if recipe.optimizer not in OPTIMIZERS:
        raise UsageError("optimizer", f"{recipe.optimizer!r} is unknown; known are {', '.join(OPTIMIZERS)}")
    if recipe.nesterov and recipe.optimizer != "sgd":
        raise UsageError("nesterov", f"is for the optimizer 'sgd', not {recipe.optimizer!r}")
    share = recipe.batch_size // devices
    if share % config.accumulate:
        sentence = f"must divide the {share} images of a batch on a device, not {config.accumulate}"
        raise UsageError("accumulate", sentence)


def _optimizer(recipe: Preset, learning_rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    decay, clip_norm = recipe.weight_decay, recipe.clip_norm or None
    if recipe.optimizer == "rmsprop":
        return rmsprop(learning_rate, momentum=MOMENTUM, weight_decay=decay, clip_norm=clip_norm)
    return sgd(learning_rate, momentum=MOMENTUM, weight_decay=decay, nesterov=recipe.nesterov, clip_norm=clip_norm)


def _learning_rate(config: RetrainConfig, recipe: Preset, length: Length) -> optax.Schedule:
    if recipe.schedule == "cosine":
        return cosine(recipe.learning_rate, 0.0, length.periods, length.period)
    ends = _WARMUP_EPOCHS if config.steps is None else max(1, round(length.periods * _WARMUP_SHARE))
    return warmup_linear(recipe.learning_rate, length.periods, length.period, ends=ends)
