"""The graph network that generator and discriminator read cells with."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gaea_jax.spaces.grammar import CellGraph


class Encoder(nn.Module):
    """A k-GNN of dimension 1: layers of tanh(W1 x + W2 (sum of the inputs' x) + b), on embedded labels.

    Messages run along the edges only, so that the features of a node depend on what it reads and not on what reads it:
    one pass over a finished cell gives the features of all its prefixes.

    Attributes:
      labels: how many labels there are.
      width: features of a node.
      layers: rounds of messages.

    References:
      Morris et al, `Weisfeiler and Leman Go Neural <https://arxiv.org/abs/1810.02244>`_, 2019.
    """

    labels: int
    width: int
    layers: int

    def setup(self) -> None:
        """Declares the embedding and the rounds."""
        self.embedding = nn.Dense(self.width, use_bias=False)
        self.rounds = [nn.Dense(self.width) for _ in range(self.layers)]

    def embed(self, labels: jax.Array) -> jax.Array:
        """Embeddings of labels, float32 [..., width]."""
        return self.embedding(jax.nn.one_hot(labels, self.labels))

    def __call__(self, graph: CellGraph) -> jax.Array:
        """Features of all nodes after every layer.

        Args:
          graph: cells, with any leading axes.

        Returns:
          float32 [..., layers + 1, nodes, width]; the first are the embeddings.
        """
        features = [self.embed(graph.labels)]
        inputs = jnp.swapaxes(graph.adjacency, -1, -2).astype(jnp.float32)
        for layer in self.rounds:
            heard = jnp.concatenate([features[-1], inputs @ features[-1]], axis=-1)
            features.append(jnp.tanh(layer(heard)))
        return jnp.stack(features, axis=-3)

    def node(self, features: jax.Array, label: jax.Array, inputs: jax.Array) -> jax.Array:
        """Features of one more node, as `__call__` on the finished cell has them.

        Args:
          features: of the nodes so far, float32 [..., layers + 1, nodes, width]; those of later nodes are not read.
          label: int32 [...].
          inputs: bool [..., nodes], what the node reads.

        Returns:
          float32 [..., layers + 1, width].
        """
        own = [self.embed(label)]
        sums = jnp.einsum("...n,...lnw->...lw", inputs.astype(jnp.float32), features)
        for number, layer in enumerate(self.rounds):
            own.append(jnp.tanh(layer(jnp.concatenate([own[-1], sums[..., number, :]], axis=-1))))
        return jnp.stack(own, axis=-2)
