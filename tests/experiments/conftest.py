"""Scripts that run in the process of the tests leave neither files at home nor settings behind."""

import jax
import pytest


@pytest.fixture(autouse=True)
def programs_are_kept_elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)
