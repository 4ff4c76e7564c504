"""All that a search consists of, made from its configuration."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gaea_jax.benchmarks import truth
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
from gaea_jax.methods import Method
from gaea_jax.methods.base import Space
from gaea_jax.nets import supernet
from gaea_jax.optim import freeze_inactive, search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.train.config import Length, compute_dtype, load_data, run_length
from gaea_jax.train.drive import Record
from gaea_jax.train.evaluate import Batch, held_out_batches, spread, supernet_accuracy
from gaea_jax.train.recipe import cosine, sgd
from gaea_jax.train.report import Accuracy, make_report
from gaea_jax.train.search_config import SearchConfig, arch_learning_rate, checked, method_of, order_of
from gaea_jax.train.state import SearchState, run_key
from gaea_jax.train.step import SearchStep, make_search_step


class Ready(NamedTuple):
    """All that a search consists of, checked and not yet begun.

    Attributes:
      config: the configuration, with what it leaves open filled in.
      space: the search space.
      method: the search method.
      length: how long it runs.
      step: its step, not compiled.
      create: draws the state before the first step from the random key of the run; pure.
      images: what it trains on.
      source: makes its batches from the images and that key.
      report: see `drive`.
      net: the supernet.
      held_out: loads so many of the images that the weights do not see, see `held_out_batches`; None without any.
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
    report: Callable[[SearchState, Record, Record | None], tuple[Record, str]]
    net: nn.Module
    held_out: Callable[[int], list[Batch]] | None
    digests: dict[str, str | None]


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
    order = order_of(config)
    space, make_method = get_space(config.space), method_of(config)
    table = None if config.table is None else truth(space, config.table)
    dataset = load_data(config, test=False)
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
        masks=config.inactive_weights == "freeze",
    )

    @jax.jit  # Traced once, for its shapes and for all that compile it.
    def create(key: jax.Array) -> SearchState:
        return SearchState.create(net, space, method, tx, dataset.train.image_shape, key)

    # Traced before the folder of the run is made, so that what does not fit leaves nothing behind; compiled after it.
    blank = jax.eval_shape(create, key)
    learns = bool(jax.tree.leaves(blank.params["arch"]))
    if not learns and train_valid is None:
        raise UsageError("objective", f"{config.method} derives by accuracy on held-out images, as bilevel ones have")
    if config.inactive_weights == "freeze":
        mixture = jax.eval_shape(
            lambda state: method.mixture(space, state.params["arch"], state.memory, state.key, 0, "weights"), blank
        )
        if mixture.at(False).active is None:
            raise UsageError("inactive_weights", f"must be 'decay' for {config.method}, which runs all operations")
    held_out = None
    if train_valid is not None:
        valid = train_valid.valid

        def held_out(count: int) -> list[Batch]:
            return held_out_batches(dataset, spread(valid, count), config.batch_size, devices)

    accuracies = {} if held_out is None else _accuracies(config, net, held_out(config.eval_images))

    def report(state: SearchState, means: Record, before: Record | None) -> tuple[Record, str]:
        return make_report(space, method, state, means, length.steps_per_epoch, table, accuracies, before)

    digests = {"--split": None if train_valid is None else train_valid.digest()}
    return Ready(config, space, method, length, step, create, dataset.train, source, report, net, held_out, digests)


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
        inner = sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay, clip_norm=config.clip_norm)
        return freeze_inactive(inner) if config.inactive_weights == "freeze" else inner

    def of_arch(arch_learning_rate: float) -> optax.GradientTransformation:
        return make_method(length, learning_rate=arch_learning_rate).optimizer(space)

    rate = arch_learning_rate(config)
    return search_optimizer(
        weights=optax.inject_hyperparams(of_weights)(config.learning_rate),
        arch=make_method(length).optimizer(space) if rate is None else optax.inject_hyperparams(of_arch)(rate),
    )


def _train_valid(config: SearchConfig, dataset: Dataset) -> TrainValid | None:
    if config.objective == "single-level":
        return None
    size = dataset.train.size
    return first_and_last_half(size) if config.split is None else load_train_valid(config.split, size)


def _accuracies(config: SearchConfig, net: nn.Module, batches: list[Batch]) -> dict[str, Accuracy]:
    """How a report evaluates the supernet: see `make_report`."""
    both = {"": "batch", "_running": "running"}
    names = both if config.eval_statistics == "both" else {"": config.eval_statistics}
    return {name: supernet_accuracy(net, batches, statistics) for name, statistics in names.items()}
