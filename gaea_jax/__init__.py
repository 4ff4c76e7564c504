"""Differentiable architecture search in JAX: geometry-aware optimisers, relaxations and supernets.

The public names are resolved at their first use, so that importing ``gaea_jax.optim`` loads nothing else.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# A public name, and the module that holds it; a name equal to the module's last part is the module itself.
_PUBLIC = {
    "SearchConfig": "gaea_jax.train",
    "SearchResult": "gaea_jax.train",
    "get_space": "gaea_jax.spaces",
    "load_table": "gaea_jax.benchmarks",
    "optim": "gaea_jax.optim",
    "search": "gaea_jax.train",
    "simplex": "gaea_jax.simplex",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gaea_jax' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if _PUBLIC[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return ["__version__", *_PUBLIC]
