import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax.data import search_source
from gaea_jax.errors import UsageError
from gaea_jax.methods import gaea
from gaea_jax.nets import supernet
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.train import SearchState, data_parallel, make_search_step, run
from gaea_jax.train.recipe import sgd

LOOPS = ("python", "scan")


@pytest.fixture(scope="module")
def searching(dataset):
    """A step of the tiny search and its source; the state is made anew for each run, which donates it."""
    from conftest import Tiny
