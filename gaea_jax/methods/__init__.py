"""Search methods: relaxation, optimiser and derivation rule, as records of pure functions."""

from collections.abc import Callable

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Method
from gaea_jax.methods.darts import darts
from gaea_jax.methods.gaea import gaea
from gaea_jax.methods.gdas import gaea_gdas, gdas
from gaea_jax.methods.random_search import random_search

__all__ = ["Arch", "Method", "darts", "gaea", "gaea_gdas", "gdas", "get_method", "random_search"]

_METHODS: dict[str, Callable[..., Method]] = {
    "darts": darts,
    "gaea": gaea,
    "gaea_gdas": gaea_gdas,
    "gdas": gdas,
    "random": random_search,
}


def get_method(name: str) -> Callable[..., Method]:
    """The factory of the method of that name.

    Args:
      name: ``"darts"``, ``"gaea"``, ``"gaea_gdas"``, ``"gdas"`` or ``"random"``.

    Returns:
      The factory; all but that of random search take ``learning_rate``, ``clip_norm`` and ``entropy_weight``.

    Raises:
      UsageError: if there is no such method.
    """
    if name not in _METHODS:
        raise UsageError("method", f"{name!r} is unknown; known are {', '.join(_METHODS)}")
    return _METHODS[name]
