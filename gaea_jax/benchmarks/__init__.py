"""Tabular benchmarks: the measured accuracy of every cell of a space, read from a file of plain arrays."""

from gaea_jax.benchmarks.tabular import Table, load_table

__all__ = ["Table", "load_table"]
