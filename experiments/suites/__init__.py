"""The suites of ``experiments.benchmark``, one a module."""
