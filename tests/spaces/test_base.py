import math

import pytest

from gaea_jax.spaces import get_space, operation_entropy


def test_the_entropy_of_operations_leaves_out_the_inputs_of_nodes() -> None:
    entropies = {"normal": 2.0, "reduce": 1.0, "normal_edges": 0.3, "reduce_edges": 0.1}
    choices = get_space("darts").choices
    assert operation_entropy(choices, entropies) == 1.5
    assert operation_entropy(choices, {"normal": 2.0, "reduce": 1.0}) == 1.5


def test_the_entropy_of_operations_of_one_cell_is_its_own() -> None:
    choices = get_space("nas_bench_201").choices
    assert operation_entropy(choices, {"cell": math.log(5)}) == pytest.approx(math.log(5))
