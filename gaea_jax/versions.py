"""Which software made a result."""

import importlib.metadata
import platform

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with, by name."""
    from gaea_jax import __version__

    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "gaea_jax": __version__, **found}
