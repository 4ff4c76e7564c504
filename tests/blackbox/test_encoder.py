import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.blackbox.discriminator import Discriminator, embed
from gaea_jax.blackbox.encoder import Encoder
from gaea_jax.spaces.grammar import CellGraph

ENCODER = Encoder(6, 16, 3)


@pytest.fixture(scope="module")
def variables(dags: CellGraph) -> dict:
    return ENCODER.init(jax.random.key(0), dags)


def test_features_follow_a_permutation_of_the_nodes(dags: CellGraph, variables: dict) -> None:
    order = jnp.array([3, 0, 5, 1, 6, 2, 4])
    moved = CellGraph(dags.labels[:, order], dags.adjacency[:, order][:, :, order])
    features = ENCODER.apply(variables, dags)
    np.testing.assert_allclose(ENCODER.apply(variables, moved), features[:, :, order], atol=1e-6)


def test_padding_changes_nothing(dags: CellGraph, variables: dict) -> None:
    cut = CellGraph(dags.labels[:, :4], dags.adjacency[:, :4, :4])
    np.testing.assert_allclose(ENCODER.apply(variables, cut), ENCODER.apply(variables, dags)[:, :, :4], atol=1e-6)


def test_what_is_read_out_depends_neither_on_order_nor_on_padding(dags: CellGraph) -> None:
    discriminator = Discriminator(6, 16, 3)
    variables = discriminator.init(jax.random.key(0), dags, dags)
    whole = embed(discriminator, variables, dags)
    order = jnp.array([3, 0, 5, 1, 6, 2, 4])
    for other in (
        CellGraph(dags.labels[:, order], dags.adjacency[:, order][:, :, order]),
        CellGraph(dags.labels[:, :4], dags.adjacency[:, :4, :4]),
    ):
        np.testing.assert_allclose(embed(discriminator, variables, other), whole, atol=1e-6)


def test_a_node_depends_on_what_it_reads_and_not_on_what_reads_it(dags: CellGraph, variables: dict) -> None:
    features = ENCODER.apply(variables, dags)
    other_output = CellGraph(dags.labels.at[:, 3].set(4), dags.adjacency)
    changed = ENCODER.apply(variables, other_output)
    np.testing.assert_array_equal(changed[:, :, :3], features[:, :, :3])
    other_input = CellGraph(dags.labels.at[:, 0].set(4), dags.adjacency)
    assert (jnp.abs(ENCODER.apply(variables, other_input) - features)[:, -1, 1].max(axis=-1) > 1e-3).all()


def test_one_more_node_has_the_features_it_has_in_the_finished_cell(dags: CellGraph, variables: dict) -> None:
    features = ENCODER.apply(variables, dags)
    for node in range(1, 4):
        known = jnp.where(jnp.arange(7)[:, None] < node, features, 0)
        own = ENCODER.apply(variables, known, dags.labels[:, node], dags.adjacency[:, :, node], method="node")
        np.testing.assert_allclose(own, features[:, :, node], atol=1e-6)


def test_the_first_layer_is_that_of_the_paper(dags: CellGraph, variables: dict) -> None:
    """tanh(W1 x + W2 (sum of the inputs' x) + b), in NumPy."""
    layer = jax.tree.map(np.asarray, variables["params"]["rounds_0"])
    embedded = np.asarray(variables["params"]["embedding"]["kernel"])[np.asarray(dags.labels)]
    own, heard = layer["kernel"][:16], layer["kernel"][16:]
    sums = np.swapaxes(np.asarray(dags.adjacency), 1, 2).astype(np.float32) @ embedded
    expected = np.tanh(embedded @ own + sums @ heard + layer["bias"])
    np.testing.assert_allclose(ENCODER.apply(variables, dags)[:, 1], expected, atol=1e-6)
