"""The kill suite on two kills, and that its comparison sees a single changed bit."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.suites import kills
from gaea_jax.checkpoint import Checkpoints
from gaea_jax.errors import UsageError
from gaea_jax.metrics import MetricsLog


def test_two_kills_change_nothing(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # A third of the time to compile.
    result = kills.run(kills.Config(kills=2, steps=12, report_every=2))
    assert result["unequal"] == []
    assert result["equal"] == result["runs"] > 0
    assert [kill["phase"] in kills.PHASES for kill in result["kills"]] == [True, True]
    assert sum(result["phases"].values()) == 2
    assert result["conclusion"].startswith(f"{result['runs']} of {result['runs']} runs with 2 kills")
    axes = Figure().add_subplot()
    kills.plot(result, axes)
    assert sum(len(line.get_xdata()) for line in axes.lines) == 2


@pytest.mark.parametrize(
    "wrong", [{"kills": 0}, {"steps": -1}, {"report_every": 0}, {"again": 1.0}, {"again": float("nan")}]
)
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        kills.run(kills.Config(**wrong))


def finished(folder, weights, loss=2.0, genotype="cell", wall_s=1.0):
    folder.mkdir()
    log = MetricsLog(folder / "metrics.jsonl")
    log.append({"step": 1, "loss": loss, "wall_s": wall_s})
    with Checkpoints(folder / "checkpoints", {}) as checkpoints:
        checkpoints.save(1, ({"weights": weights}, wall_s))
    (folder / "result.json").write_text(f'{{"genotype": "{genotype}"}}')
    return kills.outcome(folder)


def test_a_difference_of_one_bit_is_found(tmp_path):
    weights = jnp.array([1.0, 2.0])
    expected = finished(tmp_path / "expected", weights)
    assert kills.differences(finished(tmp_path / "later", weights, wall_s=2.0), expected) == []
    next_to = jnp.asarray(np.nextafter(np.asarray(weights), 3, dtype=np.float32))
    assert kills.differences(finished(tmp_path / "weights", next_to), expected) == [
        "1 of 1 leaves differ, the first is [0]['weights']"
    ]
    assert kills.differences(finished(tmp_path / "loss", weights, loss=2.5), expected) == [
        "reports differ, of steps [1] and [1]"
    ]
    assert kills.differences(finished(tmp_path / "cell", weights, genotype="other"), expected) == [
        "the genotype is other, not cell"
    ]
