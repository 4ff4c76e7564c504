from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.methods import Arch, Method, darts, gaea, gaea_gdas, gaea_pc_darts, gdas, pc_darts, random_search
from gaea_jax.methods.base import learnt
from gaea_jax.nets import Mixture
from gaea_jax.spaces.darts import DARTS_SPACE
from gaea_jax.train import SearchState
from gaea_jax.train.report import make_report

KEY = jax.random.key(0)
MEANS = {"loss": 1.5, "accuracy": 40.0}
# Three skips in either cell, of eight operations each.
CELL = DARTS_SPACE.parse("DARTS_V1")
WITH_EDGES = [gaea_pc_darts, pc_darts]
LOGITS = [gdas, pc_darts]


def state_of(arch: Arch) -> SearchState:
    return SearchState(jnp.int32(6), {"weights": {}, "arch": arch}, {}, (), {}, KEY)


def favouring(factory: Callable) -> Arch:
    """The architecture of a method whose weights are uneven everywhere and stand for `CELL`."""
    selection, rng, arch = DARTS_SPACE.encode(CELL), np.random.default_rng(0), {}
    for name, choice in learnt(DARTS_SPACE, optional=factory in WITH_EDGES).items():
        uneven = rng.uniform(0.9, 1.1, choice.shape) * (choice.uniform() + selection.get(name, 0.0))
        point = simplex.normalise(uneven.astype(jnp.float32), segments=choice.segments)
        arch[name] = jnp.log(point) if factory in LOGITS else point
    return arch


def report(method: Method, arch: Arch, accuracies: dict[str, Callable] | None = None) -> tuple[dict, str]:
    return make_report(DARTS_SPACE, method, state_of(arch), MEANS, 4, None, accuracies or {}, None)


class Recorded:
    """A stand-in for the accuracy of a supernet that keeps what it was asked."""

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self.asked: list[Mixture] = []

    def __call__(self, state: SearchState, mixture: Mixture) -> float:
        self.asked.append(mixture)
        return self.offset + len(self.asked)


def test_entropies_of_rows_and_of_nodes_and_the_share_of_skips() -> None:
    arch = favouring(gaea_pc_darts)
    record, text = report(gaea_pc_darts(), arch)
    assert set(record["mixture"]) == set(record["entropy"]) == {"normal", "reduce", "normal_edges", "reduce_edges"}
    for name, table in record["mixture"].items():
        np.testing.assert_array_equal(np.float32(table), arch[name])
        rows = table if name in ("normal", "reduce") else np.split(table, (2, 5, 9))
        assert all(sum(row) == pytest.approx(1) for row in rows)
        nats = np.mean([-np.sum(np.array(row) * np.log(row)) for row in rows])
        assert record["entropy"][name] == pytest.approx(nats, rel=1e-5)
    assert record["genotype"] == str(CELL)
    assert record["skip_share"] == 6 / 16
    assert (record["epoch"], record["loss"]) == (1.5, 1.5)
    assert not {"valid_accuracy", "derived_accuracy"} & set(record)
    operations = (record["entropy"]["normal"] + record["entropy"]["reduce"]) / 2
    assert text == f"loss 1.500  acc 40.0 %  entropy {operations:.3f} nats  skip_connect 38%"


def test_entropies_of_uniform_weights() -> None:
    ops, edges = np.log(8), np.mean(np.log([2, 3, 4, 5]))
    record, _ = report(gaea_pc_darts(), gaea_pc_darts().init(DARTS_SPACE, KEY))
    expected = {"normal": ops, "reduce": ops, "normal_edges": edges, "reduce_edges": edges}
    assert record["entropy"] == pytest.approx(expected, rel=1e-6)
    # Without edges to learn there are none to report.
    record, _ = report(darts(), darts().init(DARTS_SPACE, KEY))
    assert record["entropy"] == pytest.approx({"normal": ops, "reduce": ops}, rel=1e-4)


@pytest.mark.parametrize("factory", [gaea, gaea_pc_darts, pc_darts])
def test_the_supernet_is_evaluated_under_the_mixture_and_under_the_derived_cell(factory: Callable) -> None:
    batch, running = Recorded(10.0), Recorded(20.0)
    method, arch = factory(), favouring(factory)
    record, text = report(method, arch, {"": batch, "_running": running})
    found = {name: value for name, value in record.items() if "accuracy_" in name or name.endswith("d_accuracy")}
    assert found == {
        "valid_accuracy": 11.0,
        "derived_accuracy": 12.0,
        "valid_accuracy_running": 21.0,
        "derived_accuracy_running": 22.0,
    }
    assert text.endswith("valid 11.0 %, derived 12.0 %  skip_connect 38%")
    for mixture, derived in (batch.asked, running.asked):
        chex.assert_trees_all_equal(mixture, method.mixture(DARTS_SPACE, arch, {}, KEY, 0, "eval"))
        # The same tables, so that nothing is compiled for it; an edge weighs 1 if it is kept.
        chex.assert_trees_all_equal_shapes_and_dtypes(derived, mixture)
        for name, kept in DARTS_SPACE.encode(CELL).items():
            np.testing.assert_array_equal(derived.weights[name], kept)
            if factory is not gaea:
                np.testing.assert_array_equal(derived.weights[f"{name}_edges"], kept.any(axis=1))


@pytest.mark.parametrize("factory", [gdas, gaea_gdas])
def test_a_mixture_that_is_the_derived_cell_is_evaluated_once(factory: Callable) -> None:
    accuracy = Recorded(10.0)
    record, _ = report(factory(), favouring(factory), {"": accuracy})
    assert record["valid_accuracy"] == record["derived_accuracy"] == 11.0
    assert len(accuracy.asked) == 1


def test_random_search_derives_by_the_first_statistics_and_evaluates_its_cell_once_with_each() -> None:
    batch, running = Recorded(10.0), Recorded(20.0)
    record, _ = report(random_search(candidates=5), {}, {"": batch, "_running": running})
    # The last of the candidates is the best, and evaluated again.
    assert record["valid_accuracy"] == record["derived_accuracy"] == 16.0
    assert record["valid_accuracy_running"] == record["derived_accuracy_running"] == 21.0
    expected = Mixture.derived(DARTS_SPACE.encode(DARTS_SPACE.parse(record["genotype"])))
    chex.assert_trees_all_equal(batch.asked[4], expected)
    chex.assert_trees_all_equal(running.asked, [expected])
    with pytest.raises(UsageError, match="objective: random search derives by accuracy on held-out images"):
        report(random_search(), {})
