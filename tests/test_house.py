"""What holds for the whole package: the direction of imports, what `optim` may load, and what no file may call."""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "gaea_jax"

# A room, and the rooms it stands directly on; it may import those and everything under them.
LEAF = {"errors", "simplex", "spaces"}
STANDS_ON = {
    "errors": set(),
    "versions": set(),
    "simplex": set(),
    "optim": {"simplex"},
    "spaces": {"errors", "simplex"},
    "processes": {"errors"},
    "data": LEAF | {"processes"},
    "checkpoint": LEAF | {"processes"},
    "metrics": LEAF,
    "plot": LEAF,
    "benchmarks": LEAF,
    "nets": {"spaces"},
    "methods": {"nets", "optim"},
    "train": {"methods", "data", "checkpoint", "metrics", "plot", "benchmarks", "versions"},
    "blackbox": {"train"},
}
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def below(room: str) -> set[str]:
    return STANDS_ON[room].union(*(below(other) for other in STANDS_ON[room]))


def imported(tree: ast.AST, module: list[str]) -> Iterator[str]:
    """Full names of what a file imports, anywhere in it; ``module`` is the file's own package, as parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module[: len(module) - node.level + 1] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def back_edges(package: pathlib.Path) -> list[str]:
    """The imports of a package that go against ``STANDS_ON``, as text."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = list(path.relative_to(package.parent).with_suffix("").parts)
        if len(parts) == 2 and parts[1] == "__init__":
            continue  # the package's own names are resolved lazily, from every room
        room = parts[1]
        if room not in STANDS_ON:
            found.append(f"{path.name}: {room} is not in STANDS_ON; say which rooms it stands on")
            continue
        for name in imported(ast.parse(path.read_text()), parts[:-1]):
            top, *rest = name.split(".")
            if top != package.name or not rest or rest[0] in {room, "__version__", *below(room)}:
                continue
            found.append(f"{'/'.join(parts)}.py imports {name}: {room} may import {sorted(below(room))}")
    return found


def offences(tree: ast.AST) -> Iterator[str]:
    """Calls that run code from data, and handlers that swallow every error."""
    for name in imported(tree, []):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"import {name}"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                yield f"line {node.lineno}: {name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                yield f"line {node.lineno}: torch.load()"
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield f"line {node.value.lineno}: allow_pickle"
            case ast.ExceptHandler(type=None):
                yield f"line {node.lineno}: bare except"
            case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException")) if not any(
                isinstance(inner, ast.Raise) for inner in ast.walk(node)
            ):
                yield f"line {node.lineno}: except {node.type.id} that does not raise"


def sources() -> list[pathlib.Path]:
    return sorted(path for folder in (PACKAGE, "experiments") for path in (ROOT / folder).rglob("*.py"))


def test_imports_point_one_way():
    assert back_edges(ROOT / PACKAGE) == []


@pytest.mark.parametrize(
    "line",
    [
        "import gaea_jax.methods",
        "from gaea_jax import train",
        "from gaea_jax.train.loop import run",
        "from ..methods import gaea",
        "from .. import train",
        "def f():\n    from gaea_jax.blackbox import ganas",
    ],
)
def test_a_back_edge_is_found(tmp_path, line):
    room = tmp_path / PACKAGE / "nets"
    room.mkdir(parents=True)
    (room / "ops.py").write_text(f"import jax\nfrom gaea_jax.spaces import Choice\nfrom . import lowering\n{line}\n")
    (found,) = back_edges(tmp_path / PACKAGE)
    assert found.startswith("gaea_jax/nets/ops.py imports gaea_jax.")


def test_a_room_without_a_place_is_found(tmp_path):
    (tmp_path / PACKAGE / "attic").mkdir(parents=True)
    (tmp_path / PACKAGE / "attic" / "box.py").write_text("")
    assert len(back_edges(tmp_path / PACKAGE)) == 1


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_code_from_data_or_swallows_errors(path):
    assert list(offences(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "eval('1')",
        "exec('1')",
        "torch.load('f')",
        "np.load('f', allow_pickle=True)",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception:\n    pass",
    ],
)
def test_an_offence_is_found(code):
    assert len(list(offences(ast.parse(code)))) == 1


def test_harmless_code_is_no_offence():
    code = "jax.eval_shape(f)\nnp.load('f', allow_pickle=False)\nmodel.eval()\n"
    code += "try:\n    f()\nexcept Exception as error:\n    raise ValueError from error"
    assert list(offences(ast.parse(code))) == []


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_optim_needs_jax_and_optax_only():
    blocked = (
        "flax",
        "tensorflow_datasets",
        "tensorflow",
        "orbax",
        "grain",
        "matplotlib",
        "rich",
        "sklearn",
        "tyro",
        "chex",
    )
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import gaea_jax.optim
import jax.numpy as jnp
solver = gaea_jax.optim.exponentiated_gradient(0.1)
params = jnp.full(4, 0.25)
solver.update(params, solver.init(params), params)
print(*sorted(name for name in sys.modules if name.startswith("gaea_jax.")))
"""
    loaded = {name.split(".")[1] for name in in_a_new_process(code).split()}
    assert loaded == {"optim", "simplex"}


def test_the_public_names_are_lazy_and_resolve():
    code = """
import sys
import gaea_jax
assert not any(name in sys.modules for name in ("jax", "optax", "flax"))
names = [name for name in dir(gaea_jax) if not name.startswith("_")]
assert {"optim", "simplex"} <= set(names), names
for name in names:
    getattr(gaea_jax, name)
assert gaea_jax.__version__ == "0.1.0"
try:
    gaea_jax.nothing
except AttributeError as error:
    print(error)
"""
    assert in_a_new_process(code) == "module 'gaea_jax' has no attribute 'nothing'\n"


def asks_for_a_space(source: str) -> list[int]:
    """Lines of code that compare a space or its name with a text, or ask of what type a space is."""

    def is_space(node: ast.AST) -> bool:
        return re.search(r"(^|\.)space(\.name)?$", ast.unparse(node)) is not None

    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = [part for s in sides for part in ast.walk(s) if isinstance(part, ast.Constant)]
            asks = any(map(is_space, sides)) and any(isinstance(text.value, str) for text in texts)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asks = node.func.attr == "startswith" and is_space(node.func.value)
        else:
            asks = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and is_space(node.args[0])
        if asks:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ('if space == "darts": pass', True),
        ('x = 1 if config.space in ("darts", "nasp") else 2', True),
        ('if space.name.startswith("nas"): pass', True),
        ("if isinstance(space, DARTS): pass", True),
        ("if space not in SPACES: pass", False),
        ("if ready.config.space != benchmark.space: pass", False),
        ('if choice.kind == "op": pass', False),
    ],
)
def test_how_a_question_for_a_space_is_recognised(line, asks):
    assert bool(asks_for_a_space(line)) == asks


def test_nothing_asks_which_space_it_is_but_the_file_of_a_space():
    """What differs is registered for the type of a space, or follows from its choices."""
    files = [path for room in (PACKAGE, "experiments") for path in (ROOT / room).rglob("*.py")]
    outside = [path for path in files if path.parent != ROOT / PACKAGE / "spaces"]
    assert len(outside) > 100
    assert [path for path in outside if asks_for_a_space(path.read_text())] == []
