"""A whole search from one configuration: what the script calls, and notebooks too."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax.benchmarks import Table, load_table
from gaea_jax.data import (
    Dataset,
    SearchSource,
    Split,
    StoredSplit,
    Stream,
    TrainValid,
    first_and_last_half,
    load_train_valid,
    search_source,
)
from gaea_jax.errors import UsageError
from gaea_jax.methods import Method, get_method
from gaea_jax.methods.base import Space
from gaea_jax.nets import supernet
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.train.config import (
    Length,
    RunConfig,
    check_run,
    compute_dtype,
    load_data,
    open_folder,
    run_length,
)
from gaea_jax.train.drive import Record, drive
from gaea_jax.train.evaluate import STATISTICS, held_out_batches, spread, supernet_accuracy
from gaea_jax.train.folder import RunFolder
from gaea_jax.train.recipe import cosine, linear, sgd
from gaea_jax.train.report import Accuracy, make_report
from gaea_jax.train.state import SearchState, compiled_once, run_key
from gaea_jax.train.step import SearchStep, check_objective, make_search_step
from gaea_jax.versions import versions

DEFAULT_EPOCHS = 25
CLAMPS = ("shift-invariant", "release")
DERIVE_FROM = ("last", "best_valid")
EVAL_STATISTICS = (*STATISTICS, "both")
TEMPERATURES = (10.0, 0.1)
# Flags that are for the method, and what its factory calls them.
_METHOD_OPTIONS = {
    "arch_learning_rate": "learning_rate",
    "edge_learning_rate": "edge_learning_rate",
    "partial": "partial",
    "arch_clip_norm": "clip_norm",
    "entropy_weight": "entropy_weight",
    "clamp": "clamp",
    "temperature": "temperature",
    "final_temperature": "temperature",
}
_POSITIVE = (
    "channels",
    "cells",
    "learning_rate",
    "schedule_epochs",
    "clip_norm",
    "arch_learning_rate",
    "edge_learning_rate",
    "partial",
    "arch_clip_norm",
    "temperature",
    "final_temperature",
    "eval_images",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """What to search, how, and where to write it; see `RunConfig` for the other fields.

    The defaults are those of GAEA on NAS-Bench-201 (appendix C.3); without a length it runs for its 25 epochs.

    Attributes:
      space: name of the search space.
      method: name of the search method.
      objective: "single-level": weights and architecture minimise the training loss; "bilevel": the architecture the
        loss on held-out images; "bilevel-unrolled": that loss after a step of the weights (DARTS' second order).
      order: "joint" takes both gradients from one pass, "alternating" one pass each; by default "joint" if the
        objective is "single-level", which alone can have it.
      split: file of the two parts of the training images for a bilevel objective, ``.npz`` with ``train`` and
        ``valid`` (see `gaea_jax.data.load_train_valid`); by default their first and last half.
      hypergradient: of "bilevel-unrolled", "exact" or, as DARTS approximates it, "finite-difference".
      table: file of a tabular benchmark, for the true accuracy of what is derived at every report.
      batch_size: images in a batch; PC-DARTS has 256, with a peak of 0.1.
      channels: width of the first stage.
      cells: cells in each stage of NAS-Bench-201; for DARTS the number of layers, 8 in the papers.
      stem: what comes before the cells, "cifar" or "imagenet"; the latter divides the side of the image by 8 before the
        first cell, as in GAEA's search on ImageNet.
      learning_rate: peak of the cosine for the weights.
      final_learning_rate: floor of that cosine.
      warmup_epochs: epochs (fractions too) in which the weights' learning rate climbs, in equal stairs, from near 0 to
        its peak, while the cosine goes on.
      schedule_epochs: epochs of that cosine, and of the temperature, if other than those of the run.
      momentum: of the weights' SGD.
      weight_decay: L2 factor of the weights.
      clip_norm: largest global norm of the weights' gradient.
      arch_learning_rate: step of the architecture; the method's own by default.
      edge_learning_rate: step of the weights of the edges, for the methods of GAEA that can learn them: "gaea" does so
        only where this is given, "gaea_pc_darts" has 0.1 by default.
      partial: K of the methods with partial channels: an operation sees the first of K parts; 4 by default.
      arch_clip_norm: largest global norm of the architecture's gradient; none by default.
      arch_warmup_epochs: epochs (fractions too) in which the architecture does not move.
      entropy_weight: factor of the divergence from the uniform mixture that is added to the loss.
      clamp: how the exponentiated gradient keeps off zero, "shift-invariant" or "release"; the former by default.
      temperature: of the Gumbel softmax in the first epoch; 10 by default.
      final_temperature: of the Gumbel softmax in the last epoch, with a straight line between; 0.1 by default.
      derive_from: which genotype is the result: "last", or "best_valid", that of the report with the best accuracy on
        held-out images; both are recorded.
      eval_images: number of held-out images on which a report evaluates the supernet, in whole batches: what does not
        fill one is left out.
      eval_statistics: BatchNorm's statistics in that evaluation, those of each "batch" or the "running" ones; "both"
        is "batch", and reports the accuracies under the others besides.
    """

    space: str = "nas_bench_201_nozero"
    method: str = "gaea"
    objective: str = "single-level"
    order: str | None = None
    split: pathlib.Path | None = None
    hypergradient: str = "exact"
    table: pathlib.Path | None = None
    batch_size: int = 64
    channels: int = 16
    cells: int = 5
    stem: str = "cifar"
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    warmup_epochs: float = 0.0
    schedule_epochs: int | None = None
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    arch_learning_rate: float | None = None
    edge_learning_rate: float | None = None
    partial: int | None = None
    arch_clip_norm: float | None = None
    arch_warmup_epochs: float = 0.0
    entropy_weight: float = 0.0
    clamp: str | None = None
    temperature: float | None = None
    final_temperature: float | None = None
    cutout: int = 0
    image_size: int = 0
    jitter: bool = False
    derive_from: str = "last"
    eval_images: int = 1024
    eval_statistics: str = "batch"


class Derived(NamedTuple):
    """A cell that was derived at a report.

    Attributes:
      genotype: the cell.
      step: number of steps made then.
      valid_accuracy: percent of held-out images right then (see `search`); None without such images.
      table: what the tabular benchmark says of the cell (see `Table.summary`); None without a table.
    """

    genotype: Any
    step: int
    valid_accuracy: float | None
    table: dict[str, dict[str, float | int]] | None

    @classmethod
    def of(cls, record: Record, space: Space) -> Self:
        """What a report says of its cell."""
        genotype = space.parse(record["genotype"])
        return cls(genotype, record["step"], record.get("valid_accuracy"), record.get("table"))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self._asdict(), "genotype": str(self.genotype)}


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      config: the configuration.
      steps: number of steps made.
      last: the cell of the last report.
      best_valid: the cell of the first report with the highest ``valid_accuracy``; None without held-out images.
      records: every report.
      state: the last `SearchState`.
      wall_s: seconds, summed over resumes.
    """

    config: SearchConfig
    steps: int
    last: Derived
    best_valid: Derived | None
    records: list[Record]
    state: SearchState
    wall_s: float

    @property
    def derived(self) -> Derived:
        """The one of the two that ``config.derive_from`` names."""
        return self.best_valid if self.best_valid and self.config.derive_from == "best_valid" else self.last

    @property
    def genotype(self) -> Any:
        """The derived cell."""
        return self.derived.genotype

    @property
    def table(self) -> dict[str, dict[str, float | int]] | None:
        """What the tabular benchmark says of the derived cell; None without a table."""
        return self.derived.table

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "space": self.config.space,
            "method": self.config.method,
            "objective": self.config.objective,
            "order": self.config.order,
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "steps": self.steps,
            "genotype": str(self.genotype),
            "derived_from": {"rule": self.config.derive_from, "step": self.derived.step},
            "table": self.table,
            "last": self.last.to_json(),
            "best_valid": self.best_valid.to_json() if self.best_valid else None,
            "wall_s": round(self.wall_s, 3),
            "versions": versions(),
        }


def search(
    config: SearchConfig,
    on_report: Callable[[Record], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> SearchResult:
    """Searches a space by gradient and derives a genotype.

    Args:
      config: what, how and where.
      on_report: called with every report, which is also a line of ``metrics.jsonl``: ``step``, ``epoch``, means since
        the last report of ``loss`` (nats), ``accuracy`` (percent) and ``gradient_norm`` (see `make_search_step`),
        ``entropy`` (mean over the simplices of each choice, nats), ``skip_share`` (of the derived operations, 0 to 1),
        ``mixture`` (weights of each choice, a flat list where its simplices differ in length), ``genotype``,
        ``wall_s``; with a bilevel objective ``valid_accuracy``, the percent of `eval_images` held-out images that the
        supernet classifies right under the method's mixture, or under the genotype if the method learns no mixture, and
        ``derived_accuracy``, that under the genotype with the weights as they are, so that the difference is what the
        discretisation costs; with both of BatchNorm's statistics also ``valid_accuracy_running`` and
        ``derived_accuracy_running``; and with a table ``table`` (`Table.summary`).
      devices: spread each batch over these; all local ones by default.

    Returns:
      The `SearchResult`; with ``config.out`` also its folder, with ``result.json`` and plots.

    Raises:
      UsageError: an argument is wrong; nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
      DivergedError: loss or gradient is not finite.
    """
    devices = devices if devices is not None else jax.local_devices()
    ready = prepare(config, devices)
    folder = open_folder(ready.config, ready.digests)
    key = jax.random.key(config.seed)
    finished = drive(
        ready.step,
        compiled_once(ready.create)(key),
        ready.source(ready.images, key),
        ready.length.until,
        report=ready.report,
        report_every=ready.length.report_every,
        description="search",
        folder=folder,
        resume=config.resume,
        loop=config.loop,
        devices=devices,
        on_report=on_report,
    )
    result = ready.result(ready.config, *finished)
    if folder:
        ready.write(result, folder)
    return result


class Ready(NamedTuple):
    """All that a search consists of, checked and not yet begun.

    Attributes:
      config: the configuration, with what it leaves open filled in.
      space: the search space.
      method: the search method.
      length: how long it runs.
      step: its step, not compiled.
      create: draws the state before the first step from the random key of the run; pure, not compiled.
      images: what it trains on.
      source: makes its batches from the images and that key.
      report: see `drive`.
      digests: what beside the configuration decides its numbers, see `open_folder`.
    """

    config: SearchConfig
    space: Space
    method: Method
    length: Length
    step: SearchStep
    create: Callable[[jax.Array], SearchState]
    images: Split | StoredSplit
    source: Callable[[Any, jax.Array], SearchSource | Stream]
    report: Callable[[SearchState, Record], tuple[Record, str]]
    digests: dict[str, str | None]

    def result(self, config: SearchConfig, state: SearchState, records: list[Record], wall_s: float) -> SearchResult:
        """What a finished run found, of this configuration or one that differs in its seed."""
        last = Derived.of(records[-1], self.space)
        best_valid = None
        if "valid_accuracy" in records[-1]:
            best_valid = Derived.of(max(records, key=lambda record: record["valid_accuracy"]), self.space)
        return SearchResult(config, self.length.until, last, best_valid, records, state, wall_s)

    def write(self, result: SearchResult, folder: RunFolder) -> None:
        """Writes a result and its plots into the folder of its run."""
        from gaea_jax import plot

        plot.search_plots(result.records, self.space.choices, self.space.graphs(result.genotype), folder.path / "plots")
        folder.write_json("result.json", result.to_json())


def prepare(config: SearchConfig, devices: Sequence[jax.Device]) -> Ready:
    """Checks a configuration and makes all that its search consists of.

    Args:
      config: what, how and where.
      devices: they share the batches of a run.

    Returns:
      The search; nothing has been written or compiled.

    Raises:
      UsageError: an argument is wrong.
    """
    config = checked(config, len(devices))
    order = _order(config)
    space, make_method = get_space(config.space), _method(config)
    table = _table(config, space)
    dataset = load_data(config)
    train_valid = _train_valid(config, dataset)
    if isinstance(dataset.train, Split):
        # Moved here, so that the sources of all seeds hold the same arrays.
        dataset = dataclasses.replace(dataset, train=Split(*map(jnp.asarray, dataset.train)))

    def source(images: Any, key: jax.Array) -> SearchSource | Stream:
        return search_source(
            dataclasses.replace(dataset, train=images),
            run_key(key),
            config.batch_size,
            objective=config.objective,
            order=order,
            train_valid=train_valid,
        )

    key = jax.random.key(config.seed)
    source(dataset.train, key)  # Refuses a wrong size of the batches.
    images = dataset.train.size if train_valid is None else len(train_valid.train)
    length = run_length(config, images, config.batch_size, config.schedule_epochs)
    method = make_method(length)

    net = supernet(
        space,
        channels=config.channels,
        cells=config.cells,
        num_classes=dataset.num_classes,
        dtype=compute_dtype(config),
        stem=config.stem,
        **method.net,
    )

    tx = _optimizer(config, space, make_method, length)
    step = make_search_step(
        net,
        space,
        method,
        tx,
        objective=config.objective,
        order=order,
        hypergradient=config.hypergradient,
        warmup_steps=round(config.arch_warmup_epochs * length.steps_per_epoch),
    )

    def create(key: jax.Array) -> SearchState:
        return SearchState.create(net, space, method, tx, dataset.train.image_shape, key)

    # Traced before the folder of the run is made, so that what does not fit leaves nothing behind; compiled after it.
    blank = jax.eval_shape(create, key)
    learns = bool(jax.tree.leaves(blank.params["arch"]))
    if not learns and train_valid is None:
        raise UsageError("objective", f"{config.method} derives by accuracy on held-out images, as bilevel ones have")
    accuracies = _accuracies(config, net, dataset, train_valid, devices)

    def report(state: SearchState, means: Record) -> tuple[Record, str]:
        return make_report(space, method, state, means, length.steps_per_epoch, table, accuracies)

    digests = {"--split": None if train_valid is None else train_valid.digest()}
    return Ready(config, space, method, length, step, create, dataset.train, source, report, digests)


def checked(config: SearchConfig, devices: int) -> SearchConfig:
    """A configuration with what it leaves open filled in, after a look at every field that needs no data.

    Args:
      config: the configuration.
      devices: number of devices that share a batch.

    Returns:
      The configuration, with a length and an order.

    Raises:
      UsageError: an argument is wrong.
    """
    if config.epochs is None and config.steps is None:
        config = dataclasses.replace(config, epochs=DEFAULT_EPOCHS)
    order = _order(config)
    check_run(config, config.batch_size, devices, positive=_POSITIVE)
    check_objective(config.objective, order, config.hypergradient)
    _check_choices(config)
    _method(config)
    return dataclasses.replace(config, order=order)


def _order(config: SearchConfig) -> str:
    return config.order or ("joint" if config.objective == "single-level" else "alternating")


def _optimizer(
    config: SearchConfig, space: Space, make_method: Callable[..., Method], length: Length
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of both blocks; their learning rates are values in its state, so that those of a sweep share it."""

    def of_weights(learning_rate: float) -> optax.GradientTransformation:
        schedule = cosine(
            learning_rate,
            config.final_learning_rate,
            length.periods,
            length.period,
            warmup=round(config.warmup_epochs * length.steps_per_epoch / length.period),
        )
        return sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay, clip_norm=config.clip_norm)

    def of_arch(arch_learning_rate: float) -> optax.GradientTransformation:
        return make_method(length, learning_rate=arch_learning_rate).optimizer(space)

    rate = arch_learning_rate(config)
    return search_optimizer(
        weights=optax.inject_hyperparams(of_weights)(config.learning_rate),
        arch=make_method(length).optimizer(space) if rate is None else optax.inject_hyperparams(of_arch)(rate),
    )


def _check_choices(config: SearchConfig) -> None:
    for name, known in (
        ("derive_from", DERIVE_FROM),
        ("eval_statistics", EVAL_STATISTICS),
        ("clamp", (None, *CLAMPS)),
    ):
        if getattr(config, name) not in known:
            accepted = ", ".join(filter(None, known))
            raise UsageError(name, f"{getattr(config, name)!r} is unknown; known are {accepted}")
    if config.objective == "single-level":
        if config.split is not None:
            raise UsageError("split", "is for bilevel objectives; single-level searches on all training images")
        if config.derive_from == "best_valid":
            raise UsageError("derive_from", "needs the held-out images of a bilevel objective for 'best_valid'")


def _train_valid(config: SearchConfig, dataset: Dataset) -> TrainValid | None:
    if config.objective == "single-level":
        return None
    size = dataset.train.size
    return first_and_last_half(size) if config.split is None else load_train_valid(config.split, size)


def _accuracies(
    config: SearchConfig,
    net: nn.Module,
    dataset: Dataset,
    train_valid: TrainValid | None,
    devices: Sequence[jax.Device],
) -> dict[str, Accuracy]:
    """How a report evaluates the supernet: see `make_report`."""
    if train_valid is None:
        return {}
    batches = held_out_batches(dataset, spread(train_valid.valid, config.eval_images), config.batch_size, devices)
    both = {"": "batch", "_running": "running"}
    names = both if config.eval_statistics == "both" else {"": config.eval_statistics}
    return {name: supernet_accuracy(net, batches, statistics) for name, statistics in names.items()}


def arch_learning_rate(config: SearchConfig) -> float | None:
    """The step of the architecture in a search: the method's own, where none is given; None if it makes none."""
    if config.arch_learning_rate is not None:
        return config.arch_learning_rate
    takes = inspect.signature(get_method(config.method)).parameters
    return takes["learning_rate"].default if "learning_rate" in takes else None


def _method(config: SearchConfig) -> Callable[..., Method]:
    """Makes the method, given the length of the run, which a temperature follows, and options that go before others."""
    factory = get_method(config.method)
    takes = inspect.signature(factory).parameters
    options: dict[str, Any] = {}
    for flag, option in _METHOD_OPTIONS.items():
        value = getattr(config, flag)
        if value is None or (flag == "entropy_weight" and not value):
            continue
        if option not in takes:
            raise UsageError(flag, f"does not apply to the method {config.method}")
        options[option] = value

    def make(length: Length, **other: Any) -> Method:
        if "temperature" not in takes:
            return factory(**{**options, **other})
        first, last = (
            default if given is None else given
            for default, given in zip(TEMPERATURES, (config.temperature, config.final_temperature), strict=True)
        )
        temperature = linear(first, last, length.periods, length.period)
        return factory(**{**options, "temperature": temperature, **other})

    return make


def _table(config: SearchConfig, space: Space) -> Table | None:
    if config.table is None:
        return None
    table = load_table(config.table)
    table.check_space(space)
    return table
