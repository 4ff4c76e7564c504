import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gaea_jax.benchmarks import Benchmark
from gaea_jax.blackbox import game as rules
from gaea_jax.blackbox import ppo
from gaea_jax.blackbox.discriminator import Discriminator, embed, pair
from gaea_jax.blackbox.game import Game, Player, play
from gaea_jax.blackbox.generator import Generator, judge, sample
from gaea_jax.blackbox.ppo import PPO
from gaea_jax.spaces.grammar import CellGraph

enter = jax.jit(rules.enter, static_argnums=0)
discriminate = jax.jit(rules.discriminate, static_argnums=0)
rewards = jax.jit(rules.rewards, static_argnums=0)
update = jax.jit(ppo.update, static_argnums=(0, 1, 2, 3))


@pytest.fixture(scope="module")
def game(small: Benchmark) -> Game:
    grammar = small.candidates.grammar
    networks = Generator(grammar, 16, 2), Discriminator(len(grammar.labels), 16, 2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    return Game(*networks, optimizer, PPO(), 20, 10)


def cells(small: Benchmark, first: int) -> CellGraph:
    """The 243 cells whose first edge has that operation."""
    return small.candidates.graph(243 * first + jnp.arange(243))


def drawn(graph: CellGraph, key: jax.Array, count: int) -> CellGraph:
    chosen = jax.random.randint(key, (count,), 0, len(graph.labels))
    return jax.tree.map(lambda leaf: leaf[chosen], graph)


def taught(game: Game, true: CellGraph, false: CellGraph, steps: int) -> tuple[Player, jax.Array, jax.Array]:
    """A discriminator after some steps on draws of two sets, with the accuracy before each and its last loss."""
    start = enter(game, true, jax.random.key(0)).discriminator

    @jax.jit
    def step(player: Player, key: jax.Array) -> tuple[Player, jax.Array]:
        keys = jax.random.split(key, 3)
        pair_of = drawn(true, keys[0], 32), drawn(false, keys[1], 32)
        return discriminate(game, player, *pair_of, jnp.zeros(32), keys[2])

    player, right = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), steps))
    firsts, seconds = (embed(game.discriminator, player.variables, graph) for graph in (true, false))
    logits = pair(game.discriminator, player.variables, firsts, seconds)
    fake = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.zeros(len(logits))))
    logits = pair(game.discriminator, player.variables, firsts, firsts[::-1])
    real = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.ones(len(logits))))
    return player, right, (fake + real) / 2


def test_what_can_be_told_apart_is(game: Game, small: Benchmark) -> None:
    _, right, _ = taught(game, cells(small, 0), cells(small, 1), 200)
    assert float(right[-20:].mean()) > 0.95


def test_the_first_of_a_pair_says_little(game: Game, small: Benchmark) -> None:
    player, _, _ = taught(game, cells(small, 0), cells(small, 1), 200)
    embedded = [embed(game.discriminator, player.variables, cells(small, first)) for first in (0, 1)]
    both = jnp.concatenate([embedded[0][:40], embedded[1][:40]])
    firsts, seconds = jnp.broadcast_arrays(embedded[0][:40, None], both[None])
    found = jax.nn.sigmoid(pair(game.discriminator, player.variables, firsts, seconds))
    assert float(jnp.var(found, axis=0).mean()) < 0.1 * float(jnp.var(found, axis=1).mean())


def test_what_is_the_same_costs_log_two(game: Game, small: Benchmark) -> None:
    *_, loss = taught(game, cells(small, 0), cells(small, 0), 300)
    assert float(loss) == pytest.approx(np.log(2), abs=0.03)


def test_what_is_generated_and_true_counts_as_true(game: Game, small: Benchmark) -> None:
    """With all labels 1 there is nothing to tell apart, and every pair is judged true."""
    true = drawn(cells(small, 0), jax.random.key(2), 10)
    player = enter(game, true, jax.random.key(0)).discriminator
    for step in range(60):
        player, _ = discriminate(game, player, true, true, jnp.ones(10), jax.random.key(step))
    assert (rewards(game.discriminator, player.variables, true, true) > 0.9).all()


def test_the_reward_is_the_mean_over_the_true_cells(game: Game, small: Benchmark) -> None:
    true, others = cells(small, 0), cells(small, 2)
    variables = enter(game, true, jax.random.key(3)).discriminator.variables
    found = rewards(game.discriminator, variables, true, others)
    one = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[5], leaf.shape), others)
    logits = game.discriminator.apply(variables, true, one)
    assert float(found[5]) == pytest.approx(float(jax.nn.sigmoid(logits).mean()), abs=1e-6)
    assert found.shape == (243,)


def test_the_generator_learns_what_is_rewarded(game: Game, small: Benchmark) -> None:
    """The operation ``c`` on four of six edges; a uniform policy gets 1 of 81 right."""

    def reward(graph: CellGraph) -> jax.Array:
        return jnp.mean(graph.labels[:, 1:5] == 4, axis=-1)

    player = enter(game, cells(small, 0), jax.random.key(4)).generator
    settings = PPO(episodes=32)

    @jax.jit
    def step(player: Player, key: jax.Array) -> tuple[Player, jax.Array]:
        variables, opt_state, measures = update(settings, game.generator, game.optimizer, reward, *player, key)
        return Player(variables, opt_state), measures["reward"]

    _, found = jax.lax.scan(step, player, jax.random.split(jax.random.key(5), 120))
    assert float(found[0]) < 0.5
    assert float(found[-10:].mean()) > 0.9


def test_the_first_step_of_an_update_is_that_of_the_policy_itself(game: Game, small: Benchmark) -> None:
    player = enter(game, cells(small, 0), jax.random.key(6)).generator
    once = PPO(episodes=16, epochs=1)
    reward = lambda graph: jnp.mean(graph.labels[:, 1:7] == 2, axis=-1)  # noqa: E731
    *_, measures = update(once, game.generator, game.optimizer, reward, *player, jax.random.key(7))
    assert float(measures["clipped"]) == 0
    assert float(measures["kl"]) == pytest.approx(0, abs=1e-7)
    assert float(measures["entropy"]) == pytest.approx(np.log(3), rel=1e-5)


def test_an_update_is_that_of_a_plain_reading_of_the_paper(game: Game, small: Benchmark) -> None:
    """One epoch by a gradient written out: -advantage x ratio + value error / 2 - entropy bonus, with plain SGD."""
    player = enter(game, cells(small, 0), jax.random.key(8)).generator
    settings = PPO(episodes=8, epochs=1)
    reward = lambda graph: jnp.mean(graph.labels[:, 1:7] == 3, axis=-1)  # noqa: E731
    sgd = optax.sgd(0.1)
    state = sgd.init(player.variables)
    moved, _, measures = update(settings, game.generator, sgd, reward, player.variables, state, jax.random.key(9))
    graph, _ = sample(game.generator, player.variables, jax.random.key(9), jnp.ones(8))
    rewarded = reward(graph)
    assert float(measures["reward"]) == pytest.approx(float(rewarded.mean()))
    values = judge(game.generator, player.variables, graph).values
    advantages = rewarded[:, None] - values
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)

    def loss(variables: dict) -> jax.Array:
        found = judge(game.generator, variables, graph)
        error = jnp.mean((found.values - rewarded[:, None]) ** 2)
        return 0.5 * error - jnp.mean(found.log_probs * advantages) - 0.02 * jnp.mean(found.entropies)

    gradient = jax.jit(jax.grad(loss))(player.variables)
    expected = jax.tree.map(lambda value, slope: value - 0.1 * slope, player.variables, gradient)
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_round_moves_both_and_is_the_same_for_the_same_key(game: Game, small: Benchmark) -> None:
    true = drawn(cells(small, 0), jax.random.key(10), 5)
    players = enter(game, true, jax.random.key(11))
    never = lambda graph: jnp.zeros(graph.labels.shape[:-1], bool)  # noqa: E731
    once = jax.jit(lambda players, key: play(game, players, true, never, key))
    after, measures = once(players, jax.random.key(12))
    again, _ = once(players, jax.random.key(12))
    for before, moved, repeated in zip(*map(jax.tree.leaves, (players, after, again)), strict=True):
        np.testing.assert_array_equal(moved, repeated)
        assert not np.array_equal(before, moved) or before.size == 0
    assert set(measures) == {"reward", "entropy", "clipped", "kl", "pair_accuracy"}
