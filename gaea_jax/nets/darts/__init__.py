"""Networks of the DARTS space: candidate operations, macro skeleton, supernet, derived networks."""

from gaea_jax.nets.darts.network import DARTSNetwork
from gaea_jax.nets.darts.supernet import DARTSSupernet

__all__ = ["DARTSNetwork", "DARTSSupernet"]
