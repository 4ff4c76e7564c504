"""Optax transforms for constrained variables: mirror descent, proximal steps, and a two-block optimiser.

Usable in any JAX project: it needs JAX and Optax only, and loads nothing else of this library.
"""

from gaea_jax.optim.freeze import freeze_inactive
from gaea_jax.optim.mirror import (
    Geometry,
    MirrorDescentState,
    entropic,
    euclidean,
    exponentiated_gradient,
    mirror_descent,
)
from gaea_jax.optim.partition import SearchOptimizerState, search_optimizer
from gaea_jax.optim.proximal import (
    Prox,
    ProximalState,
    box,
    cardinality,
    l1,
    nonnegative_l1,
    one_hot,
    one_hot_rows,
    project_onto,
    proximal,
)

__all__ = [
    "Geometry",
    "MirrorDescentState",
    "Prox",
    "ProximalState",
    "SearchOptimizerState",
    "box",
    "cardinality",
    "entropic",
    "euclidean",
    "exponentiated_gradient",
    "freeze_inactive",
    "l1",
    "mirror_descent",
    "nonnegative_l1",
    "one_hot",
    "one_hot_rows",
    "project_onto",
    "proximal",
    "search_optimizer",
]
