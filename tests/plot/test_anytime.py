import pathlib

import pytest

from gaea_jax.errors import UsageError
from gaea_jax.plot.anytime import anytime

POINTS = [1, 10, 20]


def records(*means: float) -> list[dict[str, float]]:
    return [{"mean": mean, "low": mean - 1, "high": mean + 1} for mean in means]


def test_every_algorithm_has_a_line_and_a_band_in_every_panel(tmp_path: pathlib.Path) -> None:
    curves = {
        "one": {"rank": records(90, 20, 3), "test": records(91, 92, 93)},
        "short": {"rank": records(50, 30), "test": records(90, 91)},
    }
    labels = {"rank": "rank", "test": "test accuracy (%)"}
    figure = anytime(curves, POINTS, labels, tmp_path / "anytime.png")
    rank, test = figure.axes
    assert [axes.get_ylabel() for axes in (rank, test)] == ["rank", "test accuracy (%)"]
    assert (rank.get_yscale(), test.get_yscale()) == ("log", "linear")
    assert [line.get_xdata().tolist() for line in rank.lines] == [[1, 10, 20], [1, 10]]
    assert [line.get_ydata().tolist() for line in test.lines] == [[91, 92, 93], [90, 91]]
    assert len(rank.collections) == 2
    assert [text.get_text() for text in rank.get_legend().get_texts()] == ["one", "short"]
    assert (tmp_path / "anytime.png").exists()


def test_nothing_to_draw_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="curves: is empty"):
        anytime({}, POINTS, {"rank": "rank"}, tmp_path / "anytime.png")
