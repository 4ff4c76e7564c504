"""Tabular benchmarks: the measured accuracy of every cell of a space, read from a file of plain arrays."""

from gaea_jax.benchmarks.base import Benchmark, Candidates
from gaea_jax.benchmarks.signal import Signal
from gaea_jax.benchmarks.sources import load_benchmark
from gaea_jax.benchmarks.tables import Truth, truth
from gaea_jax.benchmarks.tabular import Table, load_table

__all__ = ["Benchmark", "Candidates", "Signal", "Table", "Truth", "load_benchmark", "load_table", "truth"]
