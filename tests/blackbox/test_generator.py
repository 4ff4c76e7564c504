import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaea_jax.blackbox import generator as policy
from gaea_jax.blackbox.generator import Generator
from gaea_jax.spaces.grammar import FIRST_OPERATION, CellGraph, Grammar
from gaea_jax.spaces.nas_bench_101 import GRAMMAR, bits, enumerate_cells
from tests.blackbox.conftest import shaken

judge = jax.jit(policy.judge, static_argnums=0)
sample = jax.jit(policy.sample, static_argnums=0)


def start(grammar: Grammar) -> tuple[Generator, dict]:
    generator = Generator(grammar, 16, 2)
    one = jax.tree.map(lambda leaf: leaf[None], grammar.start())
    return generator, jax.jit(generator.init)(jax.random.key(0), one)


def test_the_first_policy_is_uniform_under_the_masks(grammar: Grammar) -> None:
    generator, variables = start(grammar)
    graph, log_probs = sample(generator, variables, jax.random.key(1), jnp.ones(50))
    entropies = judge(generator, variables, graph).entropies
    if grammar.fixed:
        np.testing.assert_allclose(log_probs, -np.log(3), rtol=1e-6)
        np.testing.assert_allclose(entropies, np.log(3), rtol=1e-6)
    else:
        # Of the first node the label alone is free: one of three operations, or the output.
        np.testing.assert_allclose(log_probs[:, 0], -np.log(4), rtol=1e-6)
        np.testing.assert_allclose(entropies[:, 0], np.log(4), rtol=1e-6)


def test_the_judge_finds_the_probabilities_of_the_writer(grammar: Grammar) -> None:
    generator, variables = start(grammar)
    variables = shaken(variables)
    graph, log_probs = sample(generator, variables, jax.random.key(2), jnp.ones(200))
    judgement = judge(generator, variables, graph)
    assert float(jnp.std(log_probs)) > 0.3
    np.testing.assert_allclose(judgement.log_probs, log_probs, atol=1e-5)
    assert (judgement.entropies >= -1e-6).all()
    if not grammar.fixed:
        ended = graph.labels[:, 1:] == grammar.none
        assert ended.any()
        np.testing.assert_array_equal(judgement.active, ~ended)
        assert (log_probs[ended] == 0).all()
        assert (judgement.entropies[ended] == 0).all()


def test_probabilities_of_all_labels_sum_to_one(grammar: Grammar) -> None:
    """Of the first node, over every label that it may have, by the frequency of what is written."""
    generator, variables = start(grammar)
    variables = shaken(variables)
    graph, log_probs = sample(generator, variables, jax.random.key(3), jnp.ones(20_000))
    probabilities = {
        int(label): float(jnp.exp(log_probs[graph.labels[:, 1] == label][0, 0]))
        for label in set(graph.labels[:, 1].tolist())
    }
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    for label, probability in probabilities.items():
        assert float(jnp.mean(graph.labels[:, 1] == label)) == pytest.approx(probability, abs=0.015)


def test_everything_written_is_a_cell() -> None:
    generator, variables = start(GRAMMAR)
    known = set(enumerate_cells().dags.tolist())
    for noise in (0.0, 0.5, 2.0):
        graph, _ = sample(generator, shaken(variables, noise), jax.random.key(4), jnp.ones(20_000))
        assert set(bits(np.asarray(graph.adjacency)).tolist()) <= known
        last = (graph.labels == 1).argmax(axis=1)
        inner = jnp.arange(7)[None] < last[:, None]
        operations = (graph.labels >= FIRST_OPERATION) & (graph.labels < GRAMMAR.none)
        assert (operations[:, 1:] == inner[:, 1:]).all()


def test_a_temperature_evens_the_policy_out(grammar: Grammar) -> None:
    generator, variables = start(grammar)
    variables = shaken(variables)
    temperatures = jnp.repeat(jnp.array([0.2, 1.0, 50.0]), 300)
    graph, _ = sample(generator, variables, jax.random.key(5), temperatures)
    kinds = [len({tuple(row) for row in graph.labels[part : part + 300].tolist()}) for part in (0, 300, 600)]
    assert kinds[0] < kinds[1] < kinds[2]


def test_gradients_are_finite_where_a_label_is_masked(grammar: Grammar) -> None:
    generator, variables = start(grammar)
    graph, _ = sample(generator, variables, jax.random.key(6), jnp.ones(20))

    def total(variables: dict) -> jax.Array:
        found = judge(generator, variables, graph)
        return jnp.sum(found.log_probs + found.entropies + found.values)

    gradient = jax.jit(jax.grad(total))(shaken(variables))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(gradient)) > 0


def test_later_decisions_do_not_change_earlier_judgements(dags: CellGraph) -> None:
    generator, variables = start(GRAMMAR)
    variables = shaken(variables)
    other = dags._replace(labels=dags.labels.at[0, 2].set(4))
    before, after = judge(generator, variables, dags), judge(generator, variables, other)
    np.testing.assert_array_equal(before.log_probs[0, 0], after.log_probs[0, 0])
    np.testing.assert_array_equal(before.values[0, :2], after.values[0, :2])
    assert abs(float(before.log_probs[0, 1] - after.log_probs[0, 1])) > 1e-3
