"""Search methods: relaxation, optimiser and derivation rule, as records of pure functions."""

from collections.abc import Callable

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Method
from gaea_jax.methods.darts import darts
from gaea_jax.methods.entrannas import entrannas, gaea_entrannas
from gaea_jax.methods.entrannas_dst import entrannas_dst, gaea_entrannas_dst
from gaea_jax.methods.gaea import gaea
from gaea_jax.methods.gdas import gaea_gdas, gdas
from gaea_jax.methods.nasp import nasp
from gaea_jax.methods.pc_darts import gaea_pc_darts, pc_darts
from gaea_jax.methods.random_search import random_search

__all__ = [
    "Arch",
    "Method",
    "darts",
    "entrannas",
    "entrannas_dst",
    "gaea",
    "gaea_entrannas",
    "gaea_entrannas_dst",
    "gaea_gdas",
    "gaea_pc_darts",
    "gdas",
    "get_method",
    "nasp",
    "pc_darts",
    "random_search",
]

_METHODS: dict[str, Callable[..., Method]] = {
    "darts": darts,
    "entrannas": entrannas,
    "entrannas_dst": entrannas_dst,
    "gaea": gaea,
    "gaea_entrannas": gaea_entrannas,
    "gaea_entrannas_dst": gaea_entrannas_dst,
    "gaea_gdas": gaea_gdas,
    "gaea_pc_darts": gaea_pc_darts,
    "gdas": gdas,
    "nasp": nasp,
    "pc_darts": pc_darts,
    "random": random_search,
}


def get_method(name: str) -> Callable[..., Method]:
    """The factory of the method of that name.

    Args:
      name: ``"darts"``, ``"entrannas"``, ``"entrannas_dst"``, ``"gaea"``, ``"gaea_entrannas"``,
        ``"gaea_entrannas_dst"``, ``"gaea_gdas"``, ``"gaea_pc_darts"``, ``"gdas"``, ``"nasp"``, ``"pc_darts"`` or
        ``"random"``.

    Returns:
      The factory; all but that of random search take ``learning_rate`` and ``clip_norm``, all but this and NASP's
      ``entropy_weight``, those of PC-DARTS also ``partial``, and those of GAEA that learn the weights of edges
      ``edge_learning_rate``.

    Raises:
      UsageError: if there is no such method.
    """
    if name not in _METHODS:
        raise UsageError("method", f"{name!r} is unknown; known are {', '.join(_METHODS)}")
    return _METHODS[name]
