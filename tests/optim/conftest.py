"""Strict promotion for every test of the transforms, and float64 for those that ask."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion() -> Iterator[None]:
    """No dtype or rank may be promoted without saying so."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit mode for one test."""
    with jax.enable_x64(True):
        yield
