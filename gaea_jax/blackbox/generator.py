"""The generator of GA-NAS: a policy that writes cells node by node, under the masks of a grammar."""

from operator import attrgetter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gaea_jax.blackbox.encoder import Encoder
from gaea_jax.spaces.grammar import CellGraph, Grammar

Variables = Any


class Judgement(NamedTuple):
    """What a policy thinks of the decisions that wrote some cells; a decision is a node's label with all its edges.

    Attributes:
      log_probs: float32 [cells, steps], of the decisions in nats; 0 where the cell was finished.
      entropies: float32 [cells, steps], of the distributions of labels and edges that were met, summed, in nats.
      values: float32 [cells, steps], the expected reward before each decision.
      active: bool [cells, steps], whether the cell was not finished yet.
    """

    log_probs: jax.Array
    entropies: jax.Array
    values: jax.Array
    active: jax.Array


class Generator(nn.Module):
    """Heads on the features of what is written: a label by an MLP, then its edges by a GRU, one source after another.

    What the heads see of a prefix is the mean of its nodes' features, those of its last node, and the number of the
    step. The layers that end in a choice start at 0, so that the first policy is uniform under the masks.

    Attributes:
      grammar: how cells are written.
      width: of all layers.
      layers: of the encoder.
    """

    grammar: Grammar
    width: int
    layers: int

    def setup(self) -> None:
        """Declares the encoder and the heads."""
        labels = len(self.grammar.labels)
        self.encoder = Encoder(labels, self.width, self.layers)
        self.label_head = _Head(self.width, labels)
        self.value_head = _Head(self.width, 1)
        if not self.grammar.fixed:
            self.edge_start = nn.Dense(self.width)
            self.edge_cell = nn.GRUCell(self.width)
            self.edge_choice = nn.Dense(2, kernel_init=nn.initializers.zeros_init())

    def prefix(self, total: jax.Array, last: jax.Array, node: jax.Array) -> jax.Array:
        """What the heads see before ``node`` is written: ``total`` is the sum of the features of all before it."""
        step = jnp.broadcast_to(jax.nn.one_hot(node - 1, self.grammar.steps), (*last.shape[:-1], self.grammar.steps))
        return jnp.concatenate([total / jnp.asarray(node, jnp.float32)[..., None], last, step], axis=-1)

    def edge(
        self, hidden: jax.Array, source: jax.Array, label: jax.Array, before: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The next state of the GRU, and the logits of no edge and of an edge from ``source``, given its features."""
        before = before[..., None].astype(jnp.float32)
        hidden, _ = self.edge_cell(hidden, jnp.concatenate([source, self.encoder.embed(label), before], axis=-1))
        return hidden, self.edge_choice(hidden)

    def __call__(self, graph: CellGraph) -> Judgement:
        """Judges how finished cells were written.

        Args:
          graph: cells, with one leading axis.

        Returns:
          The `Judgement`.
        """
        grammar = self.grammar
        features = self.encoder(graph)[:, -1]
        nodes = 1 + jnp.arange(grammar.steps)
        totals = jnp.cumsum(features, axis=1)[:, : grammar.steps]
        seen = self.prefix(totals, features[:, : grammar.steps], nodes)
        label = graph.labels[:, 1 : 1 + grammar.steps]
        log_probs, entropies = _judged(self.label_head(seen), _label_masks(grammar, graph, nodes), label)
        if not grammar.fixed:
            hidden = jnp.tanh(self.edge_start(seen))
            bit = jnp.zeros(label.shape, jnp.int32)
            for source in range(grammar.nodes - 1):
                hidden, logits = self.edge(
                    hidden, jnp.broadcast_to(features[:, source, None], hidden.shape), label, bit
                )
                bit = graph.adjacency[:, source, 1 : 1 + grammar.steps].astype(jnp.int32)
                of_edge = _judged(logits, _edge_masks(grammar, graph, nodes, source), bit)
                log_probs, entropies = log_probs + of_edge[0], entropies + of_edge[1]
        return Judgement(log_probs, entropies, self.value_head(seen)[..., 0], label != grammar.none)


class _Head(nn.Module):
    """An MLP with one hidden layer, whose last layer starts at 0."""

    width: int
    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.out, kernel_init=nn.initializers.zeros_init())(x)


def judge(generator: Generator, variables: Variables, graph: CellGraph) -> Judgement:
    """Judges how finished cells were written; see `Generator.__call__`."""
    judgement: Any = generator.apply(variables, graph)
    return judgement


def sample(
    generator: Generator, variables: Variables, key: jax.Array, temperatures: jax.Array
) -> tuple[CellGraph, jax.Array]:
    """Writes cells.

    Args:
      generator: the policy.
      variables: its parameters.
      key: of the draw.
      temperatures: float32 [cells]; the logits of a cell are divided by its own.

    Returns:
      The finished cells, and the log-probability of every decision at its temperature, float32 [cells, steps].
    """
    grammar = generator.grammar
    count = len(temperatures)
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), grammar.start())
    nodes = jnp.arange(grammar.nodes)

    def call(part: str, *args: Any) -> Any:
        return generator.apply(variables, *args, method=lambda module, *given: attrgetter(part)(module)(*given))

    features = jnp.where(nodes[:, None] == 0, call("encoder", start), 0)

    def write(carry: tuple[CellGraph, jax.Array], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        (graph, features), (node, key) = carry, xs
        label_key, edge_key = jax.random.split(key)
        total, last = jnp.sum(features[:, -1], axis=1), features[:, -1, node - 1]
        seen = call("prefix", total, last, node)
        masks = jax.vmap(grammar.label_mask, (0, None))(graph, node)
        logits = _masked(call("label_head", seen) / temperatures[:, None], masks)
        label = jax.random.categorical(label_key, logits)
        log_probs = _log_prob(logits, label)
        graph = graph._replace(labels=graph.labels.at[:, node].set(label))
        if not grammar.fixed:

            def connect(carry: tuple, xs: tuple) -> tuple:
                (graph, hidden, bit, log_probs), (source, key) = carry, xs
                hidden, logits = call("edge", hidden, features[:, -1, source], label, bit)
                masks = jax.vmap(grammar.edge_mask, (0, None, None))(graph, node, source)
                logits = _masked(logits / temperatures[:, None], masks)
                bit = jax.random.categorical(key, logits)
                graph = graph._replace(adjacency=graph.adjacency.at[:, source, node].set(bit == 1))
                return (graph, hidden, bit, log_probs + _log_prob(logits, bit)), None

            hidden = jnp.tanh(call("edge_start", seen))
            keys = jax.random.split(edge_key, grammar.nodes - 1)
            edges = (graph, hidden, jnp.zeros_like(label), log_probs)
            (graph, _, _, log_probs), _ = jax.lax.scan(connect, edges, (jnp.arange(grammar.nodes - 1), keys))
        own = call("encoder.node", features, label, graph.adjacency[:, :, node])
        return (graph, features.at[:, :, node].set(own)), log_probs

    steps = 1 + jnp.arange(grammar.steps)
    keys = jax.random.split(key, grammar.steps)
    (graph, _), log_probs = jax.lax.scan(write, (start, features), (steps, keys))
    return graph, jnp.transpose(log_probs)


def _label_masks(grammar: Grammar, graph: CellGraph, nodes: jax.Array) -> jax.Array:
    """What each label of finished cells could have been, bool [cells, steps, labels]."""

    def one(graph: CellGraph, node: jax.Array) -> jax.Array:
        return grammar.label_mask(graph.prefix(node, -1, grammar.none), node)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(graph, nodes)


def _edge_masks(grammar: Grammar, graph: CellGraph, nodes: jax.Array, source: int) -> jax.Array:
    """The same of the edges from a source, bool [cells, steps, 2]."""

    def one(graph: CellGraph, node: jax.Array) -> jax.Array:
        return grammar.edge_mask(graph.prefix(node, source, grammar.none), node, jnp.int32(source))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(graph, nodes)


def _masked(logits: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, logits, -jnp.inf)


def _log_prob(logits: jax.Array, choice: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), choice[..., None], axis=-1)[..., 0]


def _judged(logits: jax.Array, mask: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of a choice and entropy under a mask, with gradients that are finite where nothing is allowed."""
    logits = jnp.where(mask, logits, -1e9)
    log_probs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(mask, jnp.exp(log_probs) * log_probs, 0), axis=-1)
    chosen = jnp.sum(jnp.where(jax.nn.one_hot(choice, logits.shape[-1], dtype=bool), log_probs, 0), axis=-1)
    return chosen, entropy
