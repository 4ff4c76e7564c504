"""A small search that compiles in a moment; the others compile without polish."""

import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from gaea_jax.data import Dataset, Split
from gaea_jax.data.augment import Augmentation
from gaea_jax.methods import Method, gaea
from gaea_jax.nets import Mixture
from gaea_jax.optim import search_optimizer
from gaea_jax.spaces import get_space
from gaea_jax.train import SearchState, make_search_step

SPACE = get_space("nas_bench_201_nozero")
CLASSES = 3
IMAGE = (4, 4, 1)


@pytest.fixture(scope="module", autouse=True)
def polish_nothing(compile_little: None) -> None:
    """Every search and training makes a step of its own, and runs it a few times."""


@pytest.fixture
def cut_back(tmp_path: pathlib.Path) -> Callable[[pathlib.Path, int], pathlib.Path]:
    """Copies the folder of a finished run with no checkpoint after a step; the reports after it are still there."""

    def cut(folder: pathlib.Path, step: int) -> pathlib.Path:
        copy = tmp_path / "cut"
        shutil.copytree(folder, copy)
        (copy / "result.json").unlink()
        shutil.rmtree(copy / "plots")
        saved = [int(path.name) for path in (copy / "checkpoints").iterdir() if path.name.isdigit()]
        # Without the one the run would start anew, without the others there would be nothing left to do.
        assert step in saved and max(saved) > step
        for later in saved:
            if later > step:
                shutil.rmtree(copy / "checkpoints" / str(later))
        return copy

    return cut


class TinyNet(nn.Module):
    """Two linear layers and a BatchNorm between; the mixture scales the hidden units, one for each operation."""

    @nn.compact
    def __call__(self, x: jax.Array, mixture: Mixture, train: bool) -> jax.Array:
        weights = mixture.weights["cell"].reshape(-1)
        hidden = nn.Dense(weights.size, use_bias=False)(x.reshape(len(x), -1))
        hidden = nn.BatchNorm(momentum=0.9, use_running_average=not train)(hidden)
        return nn.Dense(CLASSES)(jnp.tanh(hidden) * weights)


class Tiny(NamedTuple):
    """All that goes into a step of a search on the tiny net; weights by plain SGD at 0.5, arch by EG at 0.1."""

    net: nn.Module = TinyNet()
    method: Method = gaea(0.1)
    weights: optax.GradientTransformation = optax.sgd(0.5)

    @property
    def tx(self):
        return search_optimizer(weights=self.weights, arch=self.method.optimizer(SPACE))

    def step(self, **options):
        return make_search_step(self.net, SPACE, self.method, self.tx, **options)

    def state(self, seed: int = 0) -> SearchState:
        """A state whose architecture is not uniform, so that no gradient is symmetric."""
        state = SearchState.create(self.net, SPACE, self.method, self.tx, IMAGE, jax.random.key(seed))
        arch = {"cell": jax.nn.softmax(jax.random.normal(jax.random.key(7), (6, 4)))}
        return state.replace(params={**state.params, "arch": arch})


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def batch() -> dict[str, tuple[jax.Array, jax.Array]]:
    """Two different batches of 8."""
    keys = jax.random.split(jax.random.key(3), 2)
    x, y = (jax.random.normal(key, (8, *IMAGE)) for key in keys)
    labels = jnp.arange(8) % CLASSES
    return {"weights": (x, labels), "arch": (y, labels[::-1])}


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """40 random images of three classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *IMAGE), np.uint8)
    split = Split(images, rng.integers(0, CLASSES, 40).astype(np.int32))
    return Dataset("noise", split, split, CLASSES, (0.5,), (0.3,), Augmentation(flip=True, pad=1))
