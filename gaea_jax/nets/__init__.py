"""Networks in Flax Linen: weights in, features out; the architecture always comes as an argument."""

from gaea_jax.nets import darts as _darts  # noqa: F401  (registers the networks of the DARTS space)
from gaea_jax.nets import nas_bench_1shot1 as _nas_bench_1shot1  # noqa: F401  (and its supernets)
from gaea_jax.nets import nas_bench_101 as _nas_bench_101  # noqa: F401  (and the stand-alone ones of NAS-Bench-1Shot1)
from gaea_jax.nets.active import active_parameters
from gaea_jax.nets.burden import burdens
from gaea_jax.nets.count import Count, count
from gaea_jax.nets.network import inherit, network
from gaea_jax.nets.supernet import Mixture, supernet

__all__ = ["Count", "Mixture", "active_parameters", "burdens", "count", "inherit", "network", "supernet"]
