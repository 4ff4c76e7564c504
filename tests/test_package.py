"""The built wheel: what is in it, and what it asks for."""

import email.parser
import pathlib
import subprocess
import sys
import zipfile

import pytest

import gaea_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("dist")
    # Of a copy, for a build leaves files beside the source.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in (ROOT / "gaea_jax").rglob("*"):
        if path.suffix in (".py", ".typed"):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name == f"gaea_jax-{gaea_jax.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not name.startswith(f"gaea_jax-{gaea_jax.__version__}.dist-info/")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "gaea_jax").rglob("*.py")}
    assert names == sources | {"gaea_jax/py.typed"}


def test_the_transforms_need_jax_and_optax_alone(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    said = email.parser.Parser().parsestr(wheel.read(metadata).decode())
    assert said["Version"] == gaea_jax.__version__
    needed = [requirement for requirement in said.get_all("Requires-Dist", []) if "extra ==" not in requirement]
    assert sorted(needed) == ["jax>=0.10", "optax>=0.2.8"]
    assert not any("<" in requirement for requirement in said.get_all("Requires-Dist", [])), "an upper pin"


def test_changelog_and_citation_are_of_this_version() -> None:
    assert f"\n## {gaea_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {gaea_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
