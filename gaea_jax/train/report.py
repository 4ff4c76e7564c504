"""What a search reports of itself: mixture, entropy, the cell derived so far, and how good that is."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gaea_jax import simplex
from gaea_jax.benchmarks import Table
from gaea_jax.methods import Method
from gaea_jax.methods.base import Space
from gaea_jax.nets import Mixture
from gaea_jax.train.drive import Record
from gaea_jax.train.state import SearchState

# The stream of random numbers for derivations; those before it are for the data and the steps.
_DERIVATIONS = 3


def make_report(
    space: Space,
    method: Method,
    state: SearchState,
    means: Record,
    steps_per_epoch: int,
    table: Table | None,
    accuracy: Callable[[SearchState, Mixture], float] | None,
) -> tuple[Record, str]:
    """Derives a cell and describes the search at a step.

    Args:
      space: the search space.
      method: the search method.
      state: the state at the step.
      means: mean metrics since the last report.
      steps_per_epoch: steps in a pass over the training images.
      table: looks up how good the cell truly is; or None.
      accuracy: ``(state, mixture)`` to the percent of held-out images that the supernet classifies right; or None.

    Returns:
      The record, see `gaea_jax.search`, and a line that sums it up.

    Raises:
      UsageError: the method cannot derive without ``accuracy``.
    """
    arch = state.params["arch"]
    key = jax.random.fold_in(jax.random.fold_in(state.key, _DERIVATIONS), state.step)

    def derived(genotype: Any) -> Mixture:
        return Mixture.derived(space.encode(genotype))

    evaluate = (lambda genotype: accuracy(state, derived(genotype))) if accuracy else None
    genotype = method.derive(space, arch, key, evaluate)
    weights = method.weights(space, arch)
    record = {
        "epoch": int(state.step) / steps_per_epoch,
        **means,
        "entropy": {name: float(simplex.entropy(table).mean()) for name, table in weights.items()},
        "skip_share": _skip_share(space, genotype),
        "mixture": {name: table.tolist() for name, table in weights.items()},
        "genotype": str(genotype),
    }
    nats = sum(record["entropy"].values()) / len(record["entropy"])
    text = f"loss {means['loss']:.3f}  acc {means['accuracy']:.1f} %  entropy {nats:.3f} nats"
    if accuracy:
        learns = bool(jax.tree.leaves(arch))
        mixture = method.mixture(space, arch, key, state.step, "eval") if learns else derived(genotype)
        record["valid_accuracy"] = accuracy(state, mixture)
        text += f"  valid {record['valid_accuracy']:.1f} %"
    if table:
        record["table"] = table.summary(genotype)
        name, found = next(iter(record["table"].items()))
        text += f"  {name} {found['test']:.2f} % (rank {found['rank']:,})"
    else:
        text += f"  skip_connect {record['skip_share']:.0%}"
    return record, text


def _skip_share(space: Space, genotype: Any) -> float:
    """Share of the operations of a cell that are skip_connect."""
    selection = space.encode(genotype)
    skips = [
        np.asarray(selection[name])[..., choice.options.index("skip_connect")].ravel()
        for name, choice in space.choices.items()
        if "skip_connect" in choice.options
    ]
    return float(np.concatenate(skips).mean())
