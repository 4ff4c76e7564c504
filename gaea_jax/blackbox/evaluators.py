"""Where scores come from: a table, or the accuracy of cells with the weights of a supernet."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gaea_jax.benchmarks import Benchmark
from gaea_jax.errors import UsageError
from gaea_jax.nets import Mixture
from gaea_jax.spaces.grammar import FIRST_OPERATION
from gaea_jax.train import restore_search

# ids int32 [n] and which of them are wanted, bool [n], to scores float32 [n]; only those that are wanted count. A
# pytree, so that its arrays are arguments of what is compiled.
Evaluate = Callable[[jax.Array, jax.Array], jax.Array]


def from_table(benchmark: Benchmark) -> Evaluate:
    """Scores by what the table says.

    Args:
      benchmark: what is searched.

    Returns:
      The `Evaluate`.
    """
    return jax.tree_util.Partial(_look_up, jnp.asarray(benchmark.scores))


def from_supernet(benchmark: Benchmark, path: str | os.PathLike[str], images: int) -> Evaluate:
    """Scores by held-out accuracy with the weights that a search by gradient has trained, which all cells share.

    BatchNorm normalises by the statistics of each batch, as in training.

    Args:
      benchmark: what is searched; its table is not read.
      path: folder of a bilevel search on the same space of NAS-Bench-201, see `restore_search`.
      images: how many held-out images to score a cell by; what does not fill a batch of the search is left out.

    Returns:
      The `Evaluate`; scores are percents.

    Raises:
      UsageError: on ``supernet``, if there is no such search, it is of another space, or it held no images out.
    """
    try:
        ready, state = restore_search(path)
    except UsageError as error:
        raise UsageError("supernet", f"{path} cannot be used: {error.sentence}") from error
    choices = ready.space.choices
    if ready.config.space != benchmark.space or set(choices) != {"cell"}:
        raise UsageError("supernet", f"{path} has searched {ready.config.space}, not {benchmark.space}")
    if ready.held_out is None:
        raise UsageError("supernet", f"{path} held no images out: its objective is {ready.config.objective}")
    edges = len(choices["cell"].rows)
    batches = ready.held_out(images)
    x, y = (jnp.stack([batch[place] for batch in batches]) for place in (0, 1))
    digits = benchmark.candidates.graphs.labels[:, 1 : 1 + edges] - FIRST_OPERATION
    net: Any = ready.net
    options = len(choices["cell"].options)

    def evaluate(weights: Any, collections: Any, x: Any, y: Any, digits: Any, ids: Any, wanted: Any) -> jax.Array:
        def accuracy(row: jax.Array) -> jax.Array:
            mixture = Mixture.derived({"cell": jax.nn.one_hot(row, options, dtype=bool)})

            def correct(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
                logits, _ = net.apply(
                    {"params": weights, **collections}, batch[0], mixture, train=True, mutable=list(collections)
                )
                return jnp.mean(jnp.argmax(logits, axis=-1) == batch[1])

            return 100 * jnp.mean(jax.lax.map(correct, (x, y)))

        def one(asked: tuple[jax.Array, jax.Array]) -> jax.Array:
            row, wanted = asked
            return jax.lax.cond(wanted, accuracy, lambda row: jnp.float32(0), row)

        return jax.lax.map(one, (digits[ids], wanted))

    return jax.tree_util.Partial(evaluate, state.params["weights"], state.collections, x, y, digits)


def _look_up(scores: jax.Array, ids: jax.Array, wanted: jax.Array) -> jax.Array:
    return scores[ids]
