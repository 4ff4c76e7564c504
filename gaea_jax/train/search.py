"""A whole search from one configuration: what the script calls, and notebooks too."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaea_jax import simplex
from gaea_jax.benchmarks import Table, load_table
from gaea_jax.data import search_source
from gaea_jax.errors import UsageError
from gaea_jax.methods import Method, get_method
from gaea_jax.methods.base import Arch, Space
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
from gaea_jax.train.recipe import cosine, sgd
from gaea_jax.train.state import SearchState, compiled_once
from gaea_jax.train.step import make_search_step
from gaea_jax.versions import versions

DEFAULT_EPOCHS = 25
CLAMPS = ("shift-invariant", "release")
_POSITIVE = (
    "channels",
    "cells",
    "learning_rate",
    "schedule_epochs",
    "clip_norm",
    "arch_learning_rate",
    "arch_clip_norm",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """What to search, how, and where to write it; see `RunConfig` for the other fields.

    The defaults are those of GAEA on NAS-Bench-201 (appendix C.3); without a length it runs for its 25 epochs.

    Attributes:
      space: name of the search space.
      method: name of the search method.
      objective: what both blocks minimise.
      order: "joint" takes both gradients from one pass, "alternating" one pass each.
      table: file of a tabular benchmark, for the true accuracy of what is derived at every report.
      batch_size: images in a batch.
      channels: width of the first stage.
      cells: cells in each stage.
      learning_rate: peak of the cosine for the weights.
      final_learning_rate: floor of that cosine.
      schedule_epochs: epochs of that cosine, if other than those of the run.
      momentum: of the weights' SGD.
      weight_decay: L2 factor of the weights.
      clip_norm: largest global norm of the weights' gradient.
      arch_learning_rate: step of the architecture; the method's own by default.
      arch_clip_norm: largest global norm of the architecture's gradient; none by default.
      arch_warmup_epochs: epochs (fractions too) in which the architecture does not move.
      entropy_weight: factor of the divergence from the uniform mixture that is added to the loss.
      clamp: how the exponentiated gradient keeps off zero, "shift-invariant" or "release"; the former by default.
    """

    space: str = "nas_bench_201_nozero"
    method: str = "gaea"
    objective: str = "single-level"
    order: str = "joint"
    table: pathlib.Path | None = None
    batch_size: int = 64
    channels: int = 16
    cells: int = 5
    learning_rate: float = 0.025
    final_learning_rate: float = 0.001
    schedule_epochs: int | None = None
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    arch_learning_rate: float | None = None
    arch_clip_norm: float | None = None
    arch_warmup_epochs: float = 0.0
    entropy_weight: float = 0.0
    clamp: str | None = None


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      genotype: the derived cell.
      config: the configuration.
      steps: number of steps made.
      table: what the tabular benchmark says of the cell (see `Table.summary`); None without a table.
      records: every report.
      state: the last `SearchState`.
      wall_s: seconds, summed over resumes.
    """

    genotype: Any
    config: SearchConfig
    steps: int
    table: dict[str, dict[str, float | int]] | None
    records: list[Record]
    state: SearchState
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "space": self.config.space,
            "method": self.config.method,
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "steps": self.steps,
            "genotype": str(self.genotype),
            "derived_from": {"rule": "last", "step": self.steps},
            "table": self.table,
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
        ``entropy`` (mean over the rows of each choice, nats), ``skip_share`` (of the derived operations, 0 to 1),
        ``mixture`` (weights of each choice), ``genotype``, ``wall_s`` and, with a table, ``table`` (`Table.summary`).
      devices: spread each batch over these; all local ones by default.

    Returns:
      The `SearchResult`; with ``config.out`` also its folder, with ``result.json`` and plots.

    Raises:
      UsageError: an argument is wrong; nothing has been overwritten.
      Interrupted: a signal ended the run; it can be resumed.
      DivergedError: loss or gradient is not finite.
    """
    devices = devices if devices is not None else jax.local_devices()
    if config.epochs is None and config.steps is None:
        config = dataclasses.replace(config, epochs=DEFAULT_EPOCHS)
    check_run(config, config.batch_size, len(devices), positive=_POSITIVE)
    space, method = get_space(config.space), _method(config)
    table = _table(config, space)
    dataset = load_data(config)
    length = run_length(config, len(dataset.train.labels), config.batch_size, config.schedule_epochs)

    net = supernet(
        space,
        channels=config.channels,
        cells=config.cells,
        num_classes=dataset.num_classes,
        dtype=compute_dtype(config),
    )
    tx = search_optimizer(
        weights=sgd(
            cosine(config.learning_rate, config.final_learning_rate, length.periods, length.period),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        ),
        arch=method.optimizer,
    )
    step = make_search_step(
        net,
        space,
        method,
        tx,
        objective=config.objective,
        order=config.order,
        warmup_steps=round(config.arch_warmup_epochs * length.steps_per_epoch),
    )
    image_shape = dataset.train.images.shape[1:]
    key = jax.random.key(config.seed)
    create = compiled_once(lambda key: SearchState.create(net, space, method, tx, image_shape, key))
    # Traced before the folder is made, so that what does not fit leaves nothing behind; compiled after it.
    jax.eval_shape(create, key)
    folder = open_folder(config)
    state = create(key)
    source = search_source(dataset, state.key, config.batch_size, config.order)
    finished = drive(
        step,
        state,
        source,
        length.until,
        report=lambda state, means: _report(space, method, table, length, state, means),
        report_every=length.report_every,
        description="search",
        folder=folder,
        resume=config.resume,
        loop=config.loop,
        devices=devices,
        on_report=on_report,
    )
    genotype = method.derive(space, finished.state.params["arch"])
    summary = table.summary(genotype) if table else None
    result = SearchResult(genotype, config, length.until, summary, finished.records, finished.state, finished.wall_s)
    if folder:
        from gaea_jax import plot

        choices = {name: (choice.options, choice.rows) for name, choice in space.choices.items()}
        plot.search_plots(result.records, choices, space.graph(genotype), folder.path / "plots")
        folder.write_json("result.json", result.to_json())
    return result


def _method(config: SearchConfig) -> Method:
    factory = get_method(config.method)
    options = {
        "learning_rate": config.arch_learning_rate,
        "clip_norm": config.arch_clip_norm,
        "entropy_weight": config.entropy_weight,
        "clamp": config.clamp,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if "clamp" in options:
        if config.clamp not in CLAMPS:
            raise UsageError("clamp", f"{config.clamp!r} is unknown; known are {', '.join(CLAMPS)}")
        if "clamp" not in inspect.signature(factory).parameters:
            raise UsageError("clamp", f"does not apply to the method {config.method}")
    return factory(**options)


def _table(config: SearchConfig, space: Space) -> Table | None:
    if config.table is None:
        return None
    table = load_table(config.table)
    table.check_space(space)
    return table


def _report(
    space: Space, method: Method, table: Table | None, length: Length, state: SearchState, means: Record
) -> tuple[Record, str]:
    weights, entropy, skip_share = _diagnose(space, method, state.params["arch"])
    genotype = method.derive(space, state.params["arch"])
    record = {
        "epoch": int(state.step) / length.steps_per_epoch,
        **means,
        "entropy": {name: float(value) for name, value in entropy.items()},
        "skip_share": float(skip_share),
        "mixture": {name: table.tolist() for name, table in weights.items()},
        "genotype": str(genotype),
    }
    nats = sum(record["entropy"].values()) / len(record["entropy"])
    text = f"loss {means['loss']:.3f}  acc {means['accuracy']:.1f} %  entropy {nats:.3f} nats"
    if table:
        record["table"] = table.summary(genotype)
        name, found = next(iter(record["table"].items()))
        text += f"  {name} {found['test']:.2f} % (rank {found['rank']:,})"
    else:
        text += f"  skip_connect {record['skip_share']:.0%}"
    return record, text


def _diagnose(space: Space, method: Method, arch: Arch) -> tuple[Any, Any, Any]:
    """Mixture weights, their mean entropy, and the share of derived operations that are skip_connect."""
    weights = method.mixture(space, arch).weights
    entropy = {name: simplex.entropy(w).mean() for name, w in weights.items()}
    selection = space.select(weights)
    skips = [
        selection[name][..., choice.options.index("skip_connect")]
        for name, choice in space.choices.items()
        if "skip_connect" in choice.options
    ]
    return weights, entropy, jnp.concatenate([skip.reshape(-1) for skip in skips]).mean()
