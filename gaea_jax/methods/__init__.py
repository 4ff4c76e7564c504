"""Search methods: relaxation, optimiser and derivation rule, as records of pure functions."""

from collections.abc import Callable

from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Method
from gaea_jax.methods.darts import darts
from gaea_jax.methods.gaea import gaea

__all__ = ["Arch", "Method", "darts", "gaea", "get_method"]

_METHODS: dict[str, Callable[..., Method]] = {"darts": darts, "gaea": gaea}


def get_method(name: str) -> Callable[..., Method]:
    """The factory of the method of that name.

    Args:
      name: ``"gaea"`` or ``"darts"``.

    Returns:
      The factory; all take ``learning_rate``, ``clip_norm`` and ``entropy_weight``.

    Raises:
      UsageError: if there is no such method.
    """
    if name not in _METHODS:
        raise UsageError("method", f"{name!r} is unknown; known are {', '.join(_METHODS)}")
    return _METHODS[name]
