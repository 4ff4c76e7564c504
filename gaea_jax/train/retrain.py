"""Trains a derived network from scratch, with the benchmark's recipe or another, and tests it at the end."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax.data import epoch_batches
from gaea_jax.errors import UsageError
from gaea_jax.nets import Count, count, network
from gaea_jax.spaces import get_space
from gaea_jax.train.config import RunConfig, check_run, compute_dtype, load_data, open_folder, run_length
from gaea_jax.train.drive import Record, drive
from gaea_jax.train.evaluate import accuracy_on
from gaea_jax.train.loop import Step
from gaea_jax.train.recipe import cosine, sgd
from gaea_jax.train.state import compiled_once
from gaea_jax.train.step import Metrics, accuracy, cross_entropy
from gaea_jax.versions import versions

MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published recipe; the fields of `RetrainConfig` that are None are taken from it.

    Attributes:
      epochs: passes over the training images.
      batch_size: images in a batch.
      channels: width of the first stage.
      cells: cells in each stage.
      learning_rate: peak of the cosine.
      weight_decay: L2 factor, on every parameter.
    """

    epochs: int
    batch_size: int
    channels: int
    cells: int
    learning_rate: float
    weight_decay: float


PRESETS = {
    "nas_bench_201": Preset(200, 256, 16, 5, 0.1, 5e-4),
    "nas_bench_201_short": Preset(12, 256, 16, 5, 0.1, 5e-4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainConfig(RunConfig):
    """Which cell to train, on what, and how; see `RunConfig` for the other fields.

    The presets are the two schedules of the benchmark (`NAS-Bench-201 <https://arxiv.org/abs/2001.00326>`_, table 1):
    SGD with Nesterov momentum 0.9 and a cosine to 0, a stair an epoch; 200 epochs, or 12 for the short one.

    Attributes:
      space: name of the search space of the genotype.
      genotype: the cell, in the grammar of the space or as JSON; or a file with it, such as a search's ``result.json``.
      preset: the recipe, "nas_bench_201" or "nas_bench_201_short", that gives all of the following that are not given,
        and the epochs where no length is given.
      batch_size: images in a batch.
      channels: width of the first stage.
      cells: cells in each stage.
      learning_rate: peak of the cosine.
      weight_decay: L2 factor, on every parameter.
    """

    genotype: str
    space: str = "nas_bench_201"
    preset: str = "nas_bench_201"
    batch_size: int | None = None
    channels: int | None = None
    cells: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None


@flax.struct.dataclass
class TrainState:
    """State of the training of one network.

    Attributes:
      step: int32 scalar, number of completed steps.
      params: Flax parameters, float32.
      collections: the network's other collections (``batch_stats``).
      opt_state: state of the optimiser.
      key: random key of the run; the order of the images and their augmentation follow from it and the step.
    """

    step: jax.Array
    params: Any
    collections: Any
    opt_state: optax.OptState
    key: jax.Array


class RetrainResult(NamedTuple):
    """A trained network.

    Attributes:
      genotype: the cell.
      config: the configuration, with the genotype as text and what came from the preset filled in.
      steps: number of steps made.
      test_accuracy: percent of the test images.
      size: parameters and multiply-adds.
      records: every report.
      state: the last `TrainState`.
      wall_s: seconds, summed over resumes.
    """

    genotype: Any
    config: RetrainConfig
    steps: int
    test_accuracy: float
    size: Count
    records: list[Record]
    state: TrainState
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "space": self.config.space,
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "steps": self.steps,
            "genotype": str(self.genotype),
            "test_accuracy": self.test_accuracy,
            "parameters": self.size.parameters,
            "multiply_adds": self.size.multiply_adds,
            "wall_s": round(self.wall_s, 3),
            "versions": versions(),
        }


def retrain(
    config: RetrainConfig,
    on_report: Callable[[Record], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> RetrainResult:
    """Trains the network of a genotype on the training images and tests it once, after the last step.

    Args:
      config: what, how and where.
      on_report: called with every report, which is also a line of ``metrics.jsonl``: ``step``, ``epoch``, means since
        the last report of ``loss`` (nats), ``accuracy`` (percent of training images) and ``gradient_norm``, and
        ``wall_s``.
      devices: spread each batch over these; all local ones by default.

    Returns:
      The `RetrainResult`; with ``config.out`` also its folder, with ``result.json`` and plots.

    Raises:
      UsageError: an argument is wrong; nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
      DivergedError: loss or gradient is not finite.
    """
    devices = devices if devices is not None else jax.local_devices()
    config, recipe = _filled(config)
    check_run(config, recipe.batch_size, len(devices), positive=("channels", "cells", "learning_rate"))
    space = get_space(config.space)
    genotype = space.parse(_genotype_text(config.genotype))
    # The cell itself, not the file it came from: that may have changed when the run is resumed.
    config = dataclasses.replace(config, genotype=str(genotype))
    dataset = load_data(config)
    length = run_length(config, dataset.train.size, recipe.batch_size)

    net = network(
        space,
        genotype,
        channels=recipe.channels,
        cells=recipe.cells,
        num_classes=dataset.num_classes,
        dtype=compute_dtype(config),
    )
    tx = sgd(
        cosine(recipe.learning_rate, 0.0, length.periods, length.period),
        momentum=MOMENTUM,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    image_shape = dataset.train.image_shape
    key = jax.random.key(config.seed)
    create = compiled_once(lambda key: _create(net, tx, image_shape, key))
    # Traced before the folder is made, so that what does not fit leaves nothing behind; compiled after it.
    jax.eval_shape(create, key)
    folder = open_folder(config)
    state = create(key)
    source = epoch_batches(dataset.train, state.key, recipe.batch_size, dataset.augmentation, dataset.mean, dataset.std)
    finished = drive(
        _make_step(net, tx),
        state,
        source,
        length.until,
        report=lambda state, means: (
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
    tested = accuracy_on(net, variables, dataset.test, dataset)
    finished.records[-1]["test_accuracy"] = tested
    result = RetrainResult(
        genotype,
        config,
        length.until,
        tested,
        count(net, image_shape),
        finished.records,
        finished.state,
        finished.wall_s,
    )
    if folder:
        from gaea_jax import plot

        plot.training_curves(result.records, folder.path / "plots" / "loss_accuracy.png")
        folder.write_json("result.json", result.to_json())
    return result


def _filled(config: RetrainConfig) -> tuple[RetrainConfig, Preset]:
    """The configuration with what its preset gives, and that recipe."""
    if config.preset not in PRESETS:
        raise UsageError("preset", f"{config.preset!r} is unknown; known are {', '.join(PRESETS)}")
    preset = dataclasses.asdict(PRESETS[config.preset])
    if config.steps is not None:
        del preset["epochs"]
    missing = {name: value for name, value in preset.items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **missing)
    recipe = {field.name: getattr(config, field.name) for field in dataclasses.fields(Preset)}
    return config, Preset(**recipe)


def _genotype_text(text: str) -> str:
    """A genotype as given, or what a file of that name says: its text, or the genotype of a result."""
    # A name, unlike the grammar and JSON, has none of these; looking them up would fail on names that are too long.
    if any(character in text for character in "|{"):
        return text
    path = pathlib.Path(text)
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("genotype", f"{text!r} is neither a genotype nor a file with one") from error
    try:
        result = json.loads(content)
    except ValueError:
        return content
    found = result.get("genotype") if isinstance(result, dict) else None
    return found if isinstance(found, str) else content


def _create(
    net: nn.Module, tx: optax.GradientTransformationExtraArgs, image_shape: tuple[int, ...], key: jax.Array
) -> TrainState:
    weights_key, run_key = jax.random.split(key)
    collections = dict(net.init(weights_key, jnp.zeros((1, *image_shape)), train=False))
    params = collections.pop("params")
    return TrainState(jnp.zeros((), jnp.int32), params, collections, tx.init(params), run_key)


def _make_step(net: nn.Module, tx: optax.GradientTransformationExtraArgs) -> Step:
    def step(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
        x, y = batch

        def objective(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            variables = {"params": params, **state.collections}
            logits, collections = net.apply(variables, x, train=True, mutable=list(state.collections))
            return cross_entropy(logits, y), (dict(collections), accuracy(logits, y))

        (loss, (collections, correct)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "accuracy": correct, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, collections, opt_state, state.key), metrics

    return step
