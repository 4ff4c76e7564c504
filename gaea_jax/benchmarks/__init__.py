"""Tabular benchmarks: the measured accuracy of every cell of a space, read from a file of plain arrays."""

from gaea_jax.benchmarks.base import Benchmark, Candidates
from gaea_jax.benchmarks.sources import Signal, load_benchmark
from gaea_jax.benchmarks.tabular import Table, load_table

__all__ = ["Benchmark", "Candidates", "Signal", "Table", "load_benchmark", "load_table"]
