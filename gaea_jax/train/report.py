"""What a search reports of itself: mixture, entropy, the cell derived so far, and how good that is."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gaea_jax import simplex
from gaea_jax.benchmarks import Truth
from gaea_jax.methods import Method
from gaea_jax.methods.base import Space
from gaea_jax.nets import Mixture
from gaea_jax.spaces import operation_entropy
from gaea_jax.train.drive import Record
from gaea_jax.train.state import SearchState

Accuracy = Callable[[SearchState, Mixture], float]

# The stream of random numbers for derivations; those before it are for the data and the steps.
_DERIVATIONS = 3


def make_report(
    space: Space,
    method: Method,
    state: SearchState,
    means: Record,
    steps_per_epoch: int,
    table: Truth | None,
    accuracies: Mapping[str, Accuracy],
    before: Record | None,
) -> tuple[Record, str]:
    """Derives a cell and describes the search at a step.

    Args:
      space: the search space.
      method: the search method.
      state: the state at the step.
      means: mean metrics since the last report.
      steps_per_epoch: steps in a pass over the training images.
      table: looks up how good the cell truly is; or None.
      accuracies: ``(state, mixture)`` to the percent of held-out images that the supernet classifies right, by what
        follows ``valid_accuracy`` and ``derived_accuracy`` in the names of the results. That of ``""``, which has to be
        there, is also what a method derives by. Empty where there are no such images.
      before: the record before this, or None.

    Returns:
      The record, see `gaea_jax.search`, and a line that sums it up.

    Raises:
      UsageError: the method cannot derive without ``accuracies``.
    """
    arch = state.params["arch"]
    key = jax.random.fold_in(jax.random.fold_in(state.key, _DERIVATIONS), state.step)

    def evaluate(genotype: Any) -> float:
        return accuracies[""](state, Mixture.derived(space.encode(genotype)))

    genotype = method.derive(space, arch, state.memory, key, evaluate if accuracies else None)
    weights = method.weights(space, arch)
    record = {
        "epoch": int(state.step) / steps_per_epoch,
        **means,
        "entropy": {name: _entropy(space, name, table) for name, table in weights.items()},
        **_skip_share(space, genotype),
        "mixture": {name: table.tolist() for name, table in weights.items()},
        "genotype": str(genotype),
        **jax.tree.map(
            lambda value: np.asarray(value).tolist(), method.measures(space, arch, state.memory, state.step)
        ),
    }
    if before:
        record["agreement"] = _agreement(space, genotype, space.parse(before["genotype"]))
    changes = f"  {means['changed_edges'] * steps_per_epoch:.1f} changes an epoch" if "changed_edges" in means else ""
    nats = operation_entropy(space.choices, record["entropy"])
    text = f"loss {means['loss']:.3f}  acc {means['accuracy']:.1f} %  entropy {nats:.3f} nats{changes}"
    if accuracies:
        discrete = Mixture.derived(space.encode(genotype))
        learns = bool(jax.tree.leaves(arch))
        mixture = method.mixture(space, arch, state.memory, key, state.step, "eval") if learns else discrete
        if learns:
            discrete = _in_form(space, genotype, mixture)
        once = _equal(mixture, discrete)
        for name, accuracy in accuracies.items():
            valid = accuracy(state, mixture)
            record[f"valid_accuracy{name}"] = valid
            record[f"derived_accuracy{name}"] = valid if once else accuracy(state, discrete)
        text += f"  valid {record['valid_accuracy']:.1f} %, derived {record['derived_accuracy']:.1f} %"
    if table:
        record["table"] = table.summary(genotype)
        name, found = next(iter(record["table"].items()))
        known = found and f"{found[found['metric']]:.2f} % (rank {found['rank']:,})"
        text += f"  {name} {known or 'not in the table'}"
    elif "skip_share" in record:
        text += f"  skip_connect {record['skip_share']:.0%}"
    return record, text


def _entropy(space: Space, name: str, table: jax.Array) -> float:
    """Mean entropy of the simplices of a table, in nats."""
    return float(simplex.entropy(table, segments=space.choices[name].segments).mean())


def _skip_share(space: Space, genotype: Any) -> dict[str, float]:
    """Share of the operations of a cell that are skip_connect; nothing, if the space has no such operation."""
    skips = kept = 0
    for name, table in space.encode(genotype).items():
        options = space.choices[name].options
        if "skip_connect" in options:
            selected = np.asarray(table)
            skips += int(selected[:, options.index("skip_connect")].sum())
            kept += int(selected.sum())
    return {"skip_share": skips / kept} if kept else {}


def _agreement(space: Space, one: Any, other: Any) -> float:
    """How many of the connections that one or the other of two cells has are in both, from 0 to 1."""
    tables = space.encode(one), space.encode(other)
    pairs = [tuple(np.asarray(cell[name]) for cell in tables) for name in tables[0]]
    return float(sum((a & b).sum() for a, b in pairs) / sum((a | b).sum() for a, b in pairs))


def _in_form(space: Space, genotype: Any, mixture: Mixture) -> Mixture:
    """A genotype in the form of a mixture, so that the program compiled for that serves it too."""
    tables = space.encode(genotype)
    derived = Mixture.derived(tables)
    transit = None if mixture.transit is None else derived
    if mixture.active is not None:
        return Mixture(derived.weights, derived.active, transit=transit)
    kept = {
        name: tables[name] if choice.weighs is None else tables[choice.weighs].any(axis=-1)
        for name, choice in space.choices.items()
    }
    weights = {name: kept[name].astype(table.dtype) for name, table in mixture.weights.items()}
    return Mixture(weights, transit=transit)


def _equal(one: Mixture, other: Mixture) -> bool:
    """Whether two mixtures are the same network, bit for bit."""
    # mypy does not know the type of a structure.
    form: Any = jax.tree.structure(one)
    if form != jax.tree.structure(other):
        return False
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
