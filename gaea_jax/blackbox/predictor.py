"""Predictor search, after BANANAS: an ensemble of networks predicts scores, and a draw from it decides what is next."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gaea_jax.benchmarks import Candidates
from gaea_jax.blackbox.base import NO_SCORE, Algorithm, Archive, unseen
from gaea_jax.errors import UsageError
from gaea_jax.spaces.grammar import CellGraph


class _Predictor(nn.Module):
    """An MLP on the labels and edges of a cell, one-hot."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1)(x)[..., 0]


def predictor_search(
    *,
    initial: int = 20,
    batch: int = 10,
    ensemble: int = 5,
    steps: int = 200,
    minibatch: int = 32,
    width: int = 64,
    learning_rate: float = 1e-3,
    parents: int = 10,
    uniform: int = 100,
) -> Algorithm:
    """Evaluates what an ensemble, fitted anew each round to all that was evaluated, likes best in a draw.

    The candidates for a batch are the neighbours of the best cells so far, and uniform ones. Each gets a draw from the
    normal distribution of the ensemble's predictions (independent Thompson sampling). In the manner of BANANAS, whose
    encoding by paths and whose loss are others.

    Args:
      initial: candidates that are drawn uniformly at first, at least ``parents``.
      batch: evaluations a round.
      ensemble: how many networks.
      steps: gradient steps of each, a round.
      minibatch: evaluated candidates in a step.
      width: of their two hidden layers.
      learning_rate: of Adam.
      parents: how many of the best have their neighbours among the candidates.
      uniform: how many uniform ones there are.

    Returns:
      The `Algorithm`.

    Raises:
      UsageError: on ``initial``, if it is less than ``parents``; on ``batch``, if it is more than ``uniform``.

    References:
      White et al, `BANANAS <https://arxiv.org/abs/1910.11858>`_, 2021.
    """
    if initial < parents:
        raise UsageError("initial", f"must be at least the {parents} parents, not {initial}")
    if uniform < batch:
        raise UsageError("batch", f"must be at most the {uniform} uniform candidates, not {batch}")
    network: Any = _Predictor(width)
    optimizer = optax.adam(learning_rate)

    def fit(key: jax.Array, inputs: jax.Array, targets: jax.Array, count: jax.Array) -> Any:
        starting, going = jax.random.split(key)
        variables = network.init(starting, inputs[:1])

        def step(carry: tuple, key: jax.Array) -> tuple:
            variables, opt_state = carry
            drawn = jax.random.randint(key, (minibatch,), 0, count)

            def loss(variables: Any) -> jax.Array:
                return jnp.mean((network.apply(variables, inputs[drawn]) - targets[drawn]) ** 2)

            updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state, variables)
            return (optax.apply_updates(variables, updates), opt_state), None

        (variables, _), _ = jax.lax.scan(step, (variables, optimizer.init(variables)), jax.random.split(going, steps))
        return variables

    def propose(
        key: jax.Array, candidates: Candidates, archive: Archive, state: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        assert candidates.neighbours is not None
        fitting, drawing, sampling = jax.random.split(key, 3)
        there = archive.scores > NO_SCORE
        mean = jnp.mean(archive.scores, where=there)
        deviation = jnp.std(archive.scores, where=there) + 1e-6
        targets = jnp.where(there, (archive.scores - mean) / deviation, 0)
        inputs = _encode(candidates, candidates.graph(archive.ids))
        fitted = jax.vmap(fit, (0, None, None, None))(
            jax.random.split(fitting, ensemble), inputs, targets, archive.queries
        )
        best, _ = archive.best(parents)
        near = candidates.neighbours[best].ravel()
        ids = jnp.concatenate([unseen(drawing, candidates, archive, uniform), near])
        found = jax.vmap(network.apply, (0, None))(fitted, _encode(candidates, candidates.graph(ids)))
        drawn = jnp.mean(found, axis=0) + jnp.std(found, axis=0) * jax.random.normal(sampling, ids.shape)
        identity = candidates.identity[ids]
        usable = candidates.feasible[ids] & ~archive.seen(candidates, ids)
        place = jnp.arange(len(ids))
        earliest = jax.ops.segment_min(jnp.where(usable, place, len(ids)), identity, num_segments=len(archive.place))
        _, taken = jax.lax.top_k(jnp.where(usable & (place == earliest[identity]), drawn, -jnp.inf), batch)
        return state, ids[taken], jnp.ones(batch, bool)

    def init(key: jax.Array, candidates: Candidates, archive: Archive) -> Any:
        return ()

    return Algorithm(initial, batch, init, propose, lambda *found: (), needs_neighbours=True)


def _encode(candidates: Candidates, graph: CellGraph) -> jax.Array:
    """A cell as one vector, float32: its labels, and its edges where cells differ in them."""
    labels = jax.nn.one_hot(graph.labels, len(candidates.grammar.labels)).reshape(*graph.labels.shape[:-1], -1)
    if candidates.grammar.fixed:
        return labels
    edges = graph.adjacency.reshape(*labels.shape[:-1], -1).astype(jnp.float32)
    return jnp.concatenate([labels, edges], axis=-1)
