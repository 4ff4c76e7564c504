"""What to search, how, and where to write it; and which of that cannot be."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from gaea_jax.errors import UsageError
from gaea_jax.methods import Method, get_method
from gaea_jax.train.config import Length, RunConfig, check_run
from gaea_jax.train.evaluate import STATISTICS
from gaea_jax.train.recipe import geometric, linear
from gaea_jax.train.step import check_objective

DEFAULT_EPOCHS = 25
CLAMPS = ("shift-invariant", "release")
DERIVE_FROM = ("last", "best_valid")
INACTIVE_WEIGHTS = ("decay", "freeze")
EVAL_STATISTICS = (*STATISTICS, "both")
# For each method that has a temperature the first, the last, and what is between.
TEMPERATURES = {
    "gdas": (10.0, 0.1, linear),
    "gaea_gdas": (10.0, 0.1, linear),
    "entrannas": (1.0, 1.0, geometric),
    "entrannas_dst": (1.0, 1.0, geometric),
}
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
    "complexity_weight": "complexity_weight",
    "init_noise": "init_noise",
    "keep": "keep",
    "tie": "tie",
    "genotype_rule": "genotype_rule",
    "engine": "engine",
    "shared": "shared",
    "selection": "selection",
    "threshold": "threshold",
    "threshold_learning_rate": "threshold_learning_rate",
    "normalise": "normalise",
    "transit_weight": "transit_weight",
    "per_edge": "per_edge",
    "max_connections": "max_connections",
    "sparsity_weight": "sparsity_weight",
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
    "threshold_learning_rate",
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
      cells: cells in each stage of NAS-Bench-201; for DARTS the number of layers, 8 in the papers, and for
        NAS-Bench-1Shot1 that of all cells, 9.
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
        only where this is given, "gaea_pc_darts" has 0.1 by default. Of NAS-Bench-1Shot1 that of inputs and output,
        which "gaea" moves like operations where it is not given.
      partial: K of the methods with partial channels: an operation sees the first of K parts; 4 by default.
      arch_clip_norm: largest global norm of the architecture's gradient; none by default.
      arch_warmup_epochs: epochs (fractions too) in which the architecture does not move.
      entropy_weight: factor of the divergence from the uniform mixture that is added to the loss.
      clamp: how the exponentiated gradient keeps off zero, "shift-invariant" or "release"; the former by default.
      temperature: in the first epoch that of the Gumbel softmax, 10 by default, or of the softmax of EnTranNAS, 1.
      final_temperature: the same in the last epoch, 0.1 and 1 by default. Between the two, GDAS has a straight line and
        EnTranNAS a constant ratio from epoch to epoch.
      complexity_weight: of NASP, factor of the burden of what is selected that is added to the loss; 0 by default.
      init_noise: of NASP, deviation of the noise around the architecture's start; 0.001 by default.
      keep: of NASP, the weight of a selected operation, "one" or its "magnitude"; the former by default.
      tie: of NASP, which of equal operations is selected, the "first" or, "sticky", the one that was; the former by
        default.
      genotype_rule: of NASP, what is derived: what the last step ran, "discrete", or what the released code derives,
        "softmax"; the former by default.
      engine: of EnTranNAS, which cells have the whole mixture: the "first" (by default) or the "last" of either kind,
        "all" or "none".
      shared: of EnTranNAS, whether the edges that leave a node share the features of an operation; they do by default.
      selection: of EnTranNAS without thresholds, what transit cells and the result have: two "edges" a node (by
        default), or the two heaviest "connections", perhaps of one edge.
      threshold: of EnTranNAS-DST, where the thresholds of the nodes start; 0.5 by default.
      threshold_learning_rate: their step with GAEA; 0.0006 by default. Without, they have that of the architecture.
      normalise: of EnTranNAS-DST, what the weights of what is left sum to 1 over, each "edge" (by default) or "node".
      transit_weight: of EnTranNAS-DST, what a connection weighs in transit cells, "one" (by default), or what the
        "mixture" of the engine cells has.
      per_edge: of EnTranNAS-DST, whether the result has "several" operations on an edge (by default), or the "best".
      max_connections: of EnTranNAS-DST, the most that a node keeps; there is no limit by default.
      sparsity_weight: of EnTranNAS-DST, factor of 1 less the mean threshold that is added to the loss; 0 by default.
      inactive_weights: what the optimiser does to the weights of operations that did not run in a step: "decay" moves
        them by decay and momentum, as the released codes do, "freeze" lets them rest.
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
    complexity_weight: float | None = None
    init_noise: float | None = None
    keep: str | None = None
    tie: str | None = None
    genotype_rule: str | None = None
    engine: str | None = None
    shared: bool | None = None
    selection: str | None = None
    threshold: float | None = None
    threshold_learning_rate: float | None = None
    normalise: str | None = None
    transit_weight: str | None = None
    per_edge: str | None = None
    max_connections: int | None = None
    sparsity_weight: float | None = None
    inactive_weights: str = "decay"
    derive_from: str = "last"
    eval_images: int = 1024
    eval_statistics: str = "batch"


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
    order = order_of(config)
    check_run(config, config.batch_size, devices, positive=_POSITIVE)
    check_objective(config.objective, order, config.hypergradient)
    _check_choices(config)
    method_of(config)
    return dataclasses.replace(config, order=order)


def _check_choices(config: SearchConfig) -> None:
    for name, known in (
        ("derive_from", DERIVE_FROM),
        ("inactive_weights", INACTIVE_WEIGHTS),
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


def order_of(config: SearchConfig) -> str:
    """The order of a search's steps: that which suits its objective, where none is given."""
    return config.order or ("joint" if config.objective == "single-level" else "alternating")


def arch_learning_rate(config: SearchConfig) -> float | None:
    """The step of the architecture in a search: the method's own, where none is given; None if it makes none."""
    if config.arch_learning_rate is not None:
        return config.arch_learning_rate
    takes = inspect.signature(get_method(config.method)).parameters
    return takes["learning_rate"].default if "learning_rate" in takes else None


def method_of(config: SearchConfig) -> Callable[..., Method]:
    """The method of a search, at the options that are given.

    Args:
      config: the configuration.

    Returns:
      ``make(length, **other)``, which makes it for a run of that length, which a temperature follows; other options go
      before those of the configuration.

    Raises:
      UsageError: the method is unknown, or does not have an option that is given.
    """
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
        *defaults, between = TEMPERATURES[config.method]
        first, last = (
            default if given is None else given
            for default, given in zip(defaults, (config.temperature, config.final_temperature), strict=True)
        )
        temperature = between(first, last, length.periods, length.period)
        return factory(**{**options, "temperature": temperature, **other})

    return make
