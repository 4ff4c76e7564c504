import chex
import numpy as np
import pytest

from gaea_jax import plot
from gaea_jax.errors import UsageError

GROUPS = [
    {
        "label": label,
        "seeds": seeds,
        "curves": {
            name: {"step": [10, 20, 30], "wall_s": [1.0, 2.5, 4.0], "mean": mean, "std": [0.0, 0.5, 2.0]}
            for name, mean in curves.items()
        },
    }
    for label, seeds, curves in [
        ("joint", [0, 1], {"entropy": [1.3, 1.2, 1.1], "rank": [2.0, 4.0, 1.0]}),
        ("alternating", [0], {"entropy": [1.25, 1.0, 0.5]}),
    ]
]
PANELS = [plot.Panel("entropy", "nats"), plot.Panel("rank", "rank (1 is best)", held=True, rank=True)]


def test_a_comparison_has_a_line_a_group_and_a_band_over_its_seeds(tmp_path, size):
    figure = plot.comparison(GROUPS, PANELS, tmp_path / "new" / "a.png")
    steps, times, rank_steps, rank_times = figure.axes
    for axes, where in ((steps, [10, 20, 30]), (times, [1, 2.5, 4])):
        joint, alternating = axes.lines
        chex.assert_trees_all_close(joint.get_xydata(), np.column_stack([where, [1.3, 1.2, 1.1]]))
        chex.assert_trees_all_close(alternating.get_xydata(), np.column_stack([where, [1.25, 1.0, 0.5]]))
        assert joint.get_color() != alternating.get_color()
        (band,) = axes.collections
        edge = {tuple(point) for point in band.get_paths()[0].vertices.round(6).tolist()}
        assert {(where[1], 0.7), (where[1], 1.7), (where[2], -0.9), (where[2], 3.1)} <= edge
    for axes in (rank_steps, rank_times):
        (line,) = axes.lines
        (band,) = axes.collections
        assert line.get_drawstyle() == "steps-post" and axes.get_yscale() == "log"
        # No rank is better than the first, and none is drawn where a logarithm cannot be.
        assert band.get_paths()[0].vertices[:, 1].min() == 1
    assert [axes.get_ylabel() for axes in (steps, rank_steps)] == ["nats", "rank (1 is best)"]
    assert [axes.get_xlabel() for axes in (rank_steps, rank_times)] == ["step", "wall-clock time (s)"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["joint (2 seeds)", "alternating (1 seed)"]
    colours = [line.get_color() for line in steps.lines]
    assert [handle.get_color() for handle in legend.legend_handles] == colours
    assert size(tmp_path / "new" / "a.png")[0] > 1000


def test_a_comparison_of_many_groups_has_a_look_for_each_and_writes_a_pdf(tmp_path):
    groups = [{**GROUPS[1], "label": str(index)} for index in range(10)]
    figure = plot.comparison(groups, PANELS[:1], tmp_path / "a.pdf")
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 10
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("panels", "said"), [([], "at least one"), ([plot.Panel("loss", "nats")], "not loss")], ids=["none", "unknown"]
)
def test_a_comparison_of_nothing_is_refused(tmp_path, panels, said):
    with pytest.raises(UsageError, match=said) as caught:
        plot.comparison(GROUPS, panels, tmp_path / "a.png")
    assert caught.value.argument == "panels"
    assert list(tmp_path.iterdir()) == []
