"""Every notebook runs from top to bottom, at a small size."""

import pathlib

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
SMALL = {
    "transforms": "STEPS = 300",
    "search": "STEPS, CHANNELS, BATCH_SIZE = 4, 4, 16",
    "seeds": "SEEDS, STEPS, CHANNELS, BATCH_SIZE = 2, 3, 2, 8",
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_there_is_a_size_for_every_notebook() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What runs for a few steps needs no polish; and two devices, so that seeds are spread.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read(name)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assigned = {line.partition(" = ")[0] for line in parameters.source.splitlines()}
    assert {name for names in assigned for name in names.split(", ")} >= set(
        SMALL[name].partition(" = ")[0].split(", ")
    )
    parameters.source += f"\n{SMALL[name]}"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert "Warning" not in said


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_stored_without_outputs_and_installs_first(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert 'find_spec("gaea_jax")' in cells[0].source and '("jax", "jaxlib", "libtpu")' in cells[0].source
