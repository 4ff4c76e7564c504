"""What a search space is: tables of categorical choices, and the rule that turns weights into a genotype.

Weights of the relaxed network, bool selections and genotypes are three forms of the same thing. ``select``
goes from the first to the second on the device, ``decode`` and ``encode`` between the second and the third on
the host.
"""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gaea_jax import simplex
from gaea_jax.errors import UsageError

G = TypeVar("G")


class Choice(NamedTuple):
    """One table of categorical choices: a simplex a row, or, where they differ in length, a segment of a flat table.

    Attributes:
      options: names of the columns; of a flat table, of its entries.
      rows: names of the simplices, such as the edge ``1<-0``.
      kind: what is chosen; ``"op"`` is an operation, of an edge or of a node, ``"input"`` what a node reads, and
        ``"output"`` what the output of a cell reads.
      segments: of a flat table, for each entry the number of its simplex; None where each row is one.
      weighs: of a flat table, the choice whose rows its entries weigh, such as edges; None of any other. Weights may
        lack such a table; then all its options weigh 1.
    """

    options: tuple[str, ...]
    rows: tuple[str, ...]
    kind: str
    segments: tuple[int, ...] | None = None
    weighs: str | None = None

    @property
    def optional(self) -> bool:
        """Whether weights may lack the table."""
        return self.weighs is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the table: (rows, options), or (options,) if it is flat."""
        return (len(self.rows), len(self.options)) if self.segments is None else (len(self.options),)

    def uniform(self) -> jax.Array:
        """The table in which all options of a simplex weigh alike, float32 (float64 under x64)."""
        return simplex.normalise(jnp.ones(self.shape, float), segments=self.segments)


class Graph(NamedTuple):
    """A derived cell, for drawing.

    Attributes:
      nodes: their names, in topological order.
      edges: (index of the source, index of the target, operation).
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int, str], ...]


class SearchSpace(Protocol[G]):
    """What every search space offers; a frozen, hashable record whose genotypes are of type ``G``."""

    @property
    def name(self) -> str:
        """The name that `gaea_jax.spaces.get_space` takes."""

    @property
    def choices(self) -> dict[str, Choice]:
        """The tables of choices by name: the structure of the architecture weights."""

    def select(self, weights: Mapping[str, jax.typing.ArrayLike]) -> dict[str, jax.Array]:
        """The derivation rule, usable inside jit: weights to bool tables of the same shapes."""

    def decode(self, selection: Mapping[str, jax.typing.ArrayLike]) -> G:
        """The genotype of a concrete bool selection; on the host."""

    def encode(self, genotype: G) -> dict[str, jax.Array]:
        """The bool selection of a genotype; the inverse of ``decode``."""

    def parse(self, text: str) -> G:
        """The genotype that a text of the published grammar, or of JSON, describes."""

    def random(self, rng: np.random.Generator) -> G:
        """A genotype drawn uniformly from the space."""

    def mutate(self, genotype: G, rng: np.random.Generator) -> G:
        """A genotype that differs from the given one in exactly one choice."""

    def count(self) -> int:
        """Number of genotypes in the space."""

    def graphs(self, genotype: G) -> dict[str, Graph]:
        """The derived cells by name, for drawing."""


def derive(space: SearchSpace[G], weights: Mapping[str, jax.typing.ArrayLike]) -> G:
    """The genotype that weights stand for: ``space.decode(space.select(weights))``.

    Args:
      space: the search space.
      weights: one array for each table of ``space.choices``, of that table's shape; larger means preferred.

    Returns:
      The derived genotype.

    Raises:
      UsageError: if a table is missing, unknown, of the wrong shape, or has a row with NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from gaea_jax.spaces import derive, get_space
      >>> print(derive(get_space("nas_bench_201_nozero"), {"cell": jnp.full((6, 4), 0.25)}))
      |skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|
    """
    for name, table in weights.items():
        if np.isnan(np.asarray(table)).any():
            raise UsageError("weights", f"table {name!r} has NaN, where finite numbers are wanted")
    return space.decode(space.select(weights))


def operation_entropy(choices: Mapping[str, Choice], entropies: Mapping[str, float]) -> float:
    """How decided a search is between operations, whatever else it chooses.

    Args:
      choices: the choices of a space by name.
      entropies: mean entropy of the simplices of a choice by name, in nats.

    Returns:
      The mean over the choices of operations, in nats.
    """
    return statistics.fmean(nats for name, nats in entropies.items() if choices[name].kind == "op")


def check_tables(choices: Mapping[str, Choice], tables: Mapping[str, Any], argument: str) -> None:
    """Refuses tables whose names or shapes are not those of the choices; optional ones may be absent.

    Only shapes are read, so it works under jit.

    Args:
      choices: the expected tables.
      tables: arrays by name.
      argument: name of the checked argument, for the error.

    Raises:
      UsageError: on ``argument``, if a table is missing, unknown or of the wrong shape.
    """
    expected = {name: choice.shape for name, choice in choices.items() if name in tables or not choice.optional}
    shapes = {name: jnp.shape(table) for name, table in tables.items()}
    if shapes != expected:
        raise UsageError(argument, f"wants tables of shapes {expected}, got {shapes}")
