import json
import pathlib
import subprocess
import sys

import pytest

from gaea_jax import plot
from gaea_jax.errors import UsageError
from gaea_jax.spaces import get_space
from gaea_jax.spaces.published import PUBLISHED

SPACE = get_space("nas_bench_201")
CHOICES = get_space("nas_bench_201_nozero").choices
CELL = "|skip_connect~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|"
GRAPHS = SPACE.graphs(SPACE.parse(CELL))
DARTS = get_space("darts")


@pytest.mark.parametrize(
    ("count", "table", "held_out"), [(1, True, False), (2, False, False), (2, False, True), (60, True, True)]
)
def test_a_search_gets_every_picture_that_applies(tmp_path, search_records, size, count, table, held_out):
    records = search_records(count, table)
    if held_out:
        records[-1] |= {"valid_accuracy": 40.0, "derived_accuracy": 30.0, "changed_edges": 0.5, "epoch": 1.0}
    written = plot.search_plots(records, CHOICES, GRAPHS, tmp_path / "plots")
    names = ["loss_accuracy.png", "entropy.png", "mixture.png", "cell.png", "cell.dot"]
    names += ["discretisation.png", "changes.png"] * held_out + ["truth.png"] * table
    assert [path.name for path in written] == names
    assert {path.name for path in (tmp_path / "plots").iterdir()} == set(names)
    for path in written:
        if path.suffix == ".png":
            width, height = size(path)
            assert 700 <= width <= 1100 and 250 <= height <= 1100


def test_a_search_of_two_cells_gets_a_drawing_of_each(tmp_path, darts_records, size, read_dot):
    cells = DARTS.graphs(PUBLISHED["GAEA_PC_DARTS_CIFAR10"])
    written = plot.search_plots(darts_records(3, edges=False), DARTS.choices, cells, tmp_path)
    names = ["loss_accuracy.png", "entropy.png", "mixture.png", "normal.png", "normal.dot", "reduce.png", "reduce.dot"]
    assert [path.name for path in written] == names
    for name, cell in cells.items():
        nodes, edges, title = read_dot((tmp_path / f"{name}.dot").read_text())
        assert (tuple(nodes), tuple(edges), title) == (*cell, f"derived cell: {name}")
        assert 1500 <= size(tmp_path / f"{name}.png")[0] <= 2000


def test_a_search_without_reports_is_refused(tmp_path):
    with pytest.raises(UsageError) as caught:
        plot.search_plots([], CHOICES, GRAPHS, tmp_path / "a")
    assert caught.value.argument == "records"
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_cells_is_refused(tmp_path, search_records):
    with pytest.raises(UsageError, match="graphs"):
        plot.search_plots(search_records(1), CHOICES, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_neither_pyplot_nor_a_room_above_the_spaces_is_loaded(tmp_path, search_records):
    program = f"""
import json, sys
sys.path.insert(0, {str(pathlib.Path(plot.__file__).parents[2])!r})
from gaea_jax import plot
from gaea_jax.spaces import Choice, Graph
records, choices, graphs = json.loads(sys.stdin.read())
choices = {{name: Choice(*choice) for name, choice in choices.items()}}
graphs = {{name: Graph(*graph) for name, graph in graphs.items()}}
plot.search_plots(records, choices, graphs, {str(tmp_path)!r})
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("gaea_jax.")}}
print("matplotlib.pyplot" in sys.modules, sorted(rooms))
"""
    data = json.dumps([search_records(2), CHOICES, GRAPHS])
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, text=True, check=True)
    assert done.stdout == "False ['errors', 'plot', 'simplex', 'spaces']\n"
