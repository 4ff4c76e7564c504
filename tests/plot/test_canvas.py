import pytest
from matplotlib.figure import Figure

from gaea_jax import plot


def test_a_run_killed_while_drawing_leaves_the_last_whole_picture(tmp_path, search_records, monkeypatch):
    path = tmp_path / "a.png"
    plot.training_curves(search_records(2), path)
    before = path.read_bytes()

    def killed(figure, target, **options):
        target.write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", killed)
    with pytest.raises(KeyboardInterrupt):
        plot.training_curves(search_records(3), path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    plot.training_curves(search_records(3), path)
    assert path.read_bytes() != before and list(tmp_path.iterdir()) == [path]
