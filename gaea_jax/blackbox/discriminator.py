"""The discriminator of GA-NAS: whether the second cell of a pair is as good as the first, which is among the best."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gaea_jax.blackbox.encoder import Encoder
from gaea_jax.spaces.grammar import CellGraph


class Discriminator(nn.Module):
    """A Siamese network: one encoder for both cells, and an MLP on both read-outs and their product.

    Attributes:
      labels: how many labels there are; the last is that of no node.
      width: of all layers.
      layers: of the encoder.
    """

    labels: int
    width: int
    layers: int

    def setup(self) -> None:
        """Declares the encoder and the MLP."""
        self.encoder = Encoder(self.labels, self.width, self.layers)
        self.hidden = nn.Dense(self.width)
        self.logit = nn.Dense(1)

    def embed(self, graph: CellGraph) -> jax.Array:
        """The mean of the features of a cell's nodes, float32 [..., width]."""
        there = (graph.labels != self.labels - 1)[..., None]
        features = jnp.where(there, self.encoder(graph)[..., -1, :, :], 0)
        return jnp.sum(features, axis=-2) / jnp.sum(there, axis=-2)

    def pair(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Logits of pairs of embeddings, float32 [...]."""
        both = jnp.concatenate([first, second, first * second], axis=-1)
        return self.logit(jnp.tanh(self.hidden(both)))[..., 0]

    def __call__(self, first: CellGraph, second: CellGraph) -> jax.Array:
        """Logits of pairs of cells, float32 [...]: above 0 if the second looks like one of the best."""
        return self.pair(self.embed(first), self.embed(second))


def embed(discriminator: Discriminator, variables: Any, graph: CellGraph) -> jax.Array:
    """See `Discriminator.embed`."""
    embedded: Any = discriminator.apply(variables, graph, method="embed")
    return embedded


def pair(discriminator: Discriminator, variables: Any, first: jax.Array, second: jax.Array) -> jax.Array:
    """See `Discriminator.pair`."""
    logits: Any = discriminator.apply(variables, first, second, method="pair")
    return logits
