"""What tests of several rooms share: 8 fake CPU devices, the measured data, and a stand-in for its table."""

import pathlib
from collections.abc import Iterator

import hypothesis
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from gaea_jax.spaces.nas_bench_201 import EDGES, OPERATIONS

jax.config.update("jax_num_cpu_devices", 8)
# How long an example takes says nothing where the machine has other work.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Of the modules, the one that takes longest.
LONGEST = "test_search_darts.py"
# No module alone has more than 25,000.
MANY_MAPS = 30_000
SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the longest module, so that at the end no worker is left alone with it."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(autouse=True, scope="module")
def dropped_programs() -> Iterator[None]:
    """Drops compiled programs: those of all modules are more memory maps than Linux lets a process have, 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_text().count("\n") > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for the programs of a session."""
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def compile_little(compiled: str) -> Iterator[None]:
    """Programs that run for a few steps need no polish, and those that are equal share one binary."""
    options = {
        "jax_compilation_cache_dir": compiled,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of measured data (CIFAR-10, NAS-Bench tables); the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """The arrays of a small table in which an operation adds the same to every edge, so equal counts tie."""
    digits = np.stack(np.unravel_index(np.arange(5**6), (5,) * 6), axis=-1)
    quality = np.array([0.0, 1.0, 2.0, 3.0, 0.5])[digits].sum(axis=1)
    columns = {
        f"{prefix}_{metric}_{epochs}": (low + slope * quality).astype(np.float32)
        for prefix, low in (("c10", 10.0), ("c100", 1.0), ("in16", 0.5))
        for metric, epochs, slope in (
            ("valid", 200, 2.0),
            ("test", 200, 2.5),
            ("valid", 12, 1.0),
            ("test", 12, 1.5),
        )
    }
    return {
        "op_names": np.array(OPERATIONS),
        "edges": np.array([f"{node}<-{source}" for node, source in EDGES]),
        "ops": digits.astype(np.uint8),
        "n_seeds": np.full(5**6, 3, np.uint8),
        **columns,
    }


@pytest.fixture
def table_path(tmp_path: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    """That table in a file."""
    path = tmp_path / "table.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path
