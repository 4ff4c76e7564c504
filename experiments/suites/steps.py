"""A search step on random images, which the suites that time one share."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gaea_jax.errors import UsageError
from gaea_jax.methods import Method, get_method
from gaea_jax.methods.base import Space
from gaea_jax.nets import supernet
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.train import SearchState, make_search_step
from gaea_jax.train.config import DTYPES
from gaea_jax.train.recipe import sgd
from gaea_jax.train.state import compiled_once
from gaea_jax.train.step import SearchStep, check_objective, make_passes


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Which step."""

    space: str = "nas_bench_201_nozero"
    """Name of the search space."""
    method: str = "gaea"
    """Name of the search method, at its defaults; one that samples takes another sample at every step."""
    objective: str = "single-level"
    """Objective of the step."""
    order: str = "joint"
    """Order of the step, "joint" or "alternating"."""
    hypergradient: str = "exact"
    """Of "bilevel-unrolled", "exact" or "finite-difference"."""
    passes: str = "all"
    """Of an alternating step "all", or one of its passes alone, "arch" or "weights"."""
    partial: int | None = None
    """K of a method with partial channels, if other than its default."""
    shared: bool | None = None
    """Whether edges share features in a method of EnTranNAS, if other than its default."""
    max_connections: int | None = None
    """The most that a node keeps with EnTranNAS-DST, if it has a limit."""
    channels: int = 16
    """Width of the first stage."""
    cells: int = 1
    """Cells in each stage of NAS-Bench-201; layers of DARTS."""
    batch_size: int = 64
    """Images in a batch."""
    image: int = 32
    """Side of an image in pixels, of three channels."""
    dtype: str = "float32"
    """Compute type."""

    @property
    def name(self) -> str:
        """Method, objective and order, and the pass, if it is one."""
        passes = () if self.passes == "all" else (self.passes,)
        return " ".join((self.method, self.objective, self.order, *passes))


PASSES = ("arch", "weights")
Create = Callable[[jax.Array], SearchState]


class Parts(NamedTuple):
    """What a step is made of, in the order in which `make_search_step` takes it."""

    net: Any
    space: Space
    method: Method
    tx: optax.GradientTransformationExtraArgs


def parts(config: StepConfig) -> Parts:
    """Makes what a step consists of.

    Args:
      config: which step.

    Returns:
      Supernet, space, method and optimiser.

    Raises:
      UsageError: a name is unknown, or the supernet cannot be of this size.
    """
    space = get_space(config.space)
    options = {name: getattr(config, name) for name in ("partial", "shared", "max_connections")}
    method = get_method(config.method)(**{name: value for name, value in options.items() if value is not None})
    net = supernet(
        space,
        channels=config.channels,
        cells=config.cells,
        num_classes=10,
        dtype=DTYPES[config.dtype],
        **method.net,
    )
    weights = sgd(0.025, momentum=0.9, weight_decay=3e-4, clip_norm=5.0)
    return Parts(net, space, method, search_optimizer(weights=weights, arch=method.optimizer(space)))


def make(config: StepConfig) -> tuple[Create, SearchStep]:
    """Makes the step and what draws its first state, neither compiled.

    Args:
      config: which step.

    Returns:
      From a random key to the state before the first step; and the step.

    Raises:
      UsageError: a name is unknown, or the supernet cannot be of this size.
    """
    made = parts(config)
    how: dict[str, Any] = {"objective": config.objective, "hypergradient": config.hypergradient}
    if config.passes == "all":
        step = make_search_step(*made, order=config.order, **how)
    else:
        check_objective(config.objective, config.order, config.hypergradient)
        if config.passes not in PASSES or config.order != "alternating":
            raise UsageError("passes", f"must be all, or one of {', '.join(PASSES)} of an alternating step")
        step = _one(getattr(make_passes(*made, **how), config.passes))
    shape = (config.image, config.image, 3)
    return lambda key: SearchState.create(*made, shape, key), step


def _one(run: SearchStep) -> SearchStep:
    """A pass as a step."""

    def step(state: SearchState, batch: Any) -> Any:
        state, metrics = run(state, batch)
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


def build(config: StepConfig) -> tuple[SearchState, Any, SearchStep]:
    """Makes the step and what it takes.

    Args:
      config: which step.

    Returns:
      The state before the first step, a random batch, and the step, not yet compiled.

    Raises:
      UsageError: a name is unknown, or the supernet cannot be of this size.
    """
    create, step = make(config)
    state = compiled_once(create)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (config.batch_size, config.image, config.image, 3))
    labels = jax.random.randint(jax.random.key(2), (config.batch_size,), 0, 10, jnp.int32)
    return state, batches(config.order, (images, labels)), step


def same(batch: Any) -> Callable[[Any], Any]:
    """A source that has the same batch for every step."""
    return Partial(_same, batch)


def _same(batch: Any, _: Any) -> Any:
    return batch


def batches(order: str, batch: Any) -> dict[str, Any]:
    """What a step of that order takes, with the same batch for both blocks."""
    return dict.fromkeys(("weights",) if order == "joint" else ("weights", "arch"), batch)


def ratios(others: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Min, median and max over the rounds of one time by the other, of lists with a time a round."""
    found = [other / our for other, our in zip(others, ours, strict=True)]
    return {"min": min(found), "median": statistics.median(found), "max": max(found)}
