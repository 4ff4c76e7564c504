"""The game of GA-NAS: a discriminator learns to tell the best cells from generated ones, and rewards the generator."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaea_jax.blackbox.discriminator import Discriminator, embed, pair
from gaea_jax.blackbox.generator import Generator, sample
from gaea_jax.blackbox.ppo import PPO, update
from gaea_jax.spaces.grammar import CellGraph


class Game(NamedTuple):
    """Its rules.

    Attributes:
      generator: the network that writes cells.
      discriminator: the network that judges pairs of them.
      optimizer: of both.
      settings: of the generator's updates.
      discriminator_steps: gradient steps of the discriminator in a round.
      generator_updates: updates of the generator after them.
    """

    generator: Generator
    discriminator: Discriminator
    optimizer: optax.GradientTransformation
    settings: PPO
    discriminator_steps: int
    generator_updates: int


class Player(NamedTuple):
    """A network: its parameters, and the state of its optimiser."""

    variables: Any
    opt_state: optax.OptState


class Players(NamedTuple):
    """Both networks."""

    generator: Player
    discriminator: Player


def enter(game: Game, cells: CellGraph, key: jax.Array) -> Players:
    """Draws both networks.

    Args:
      game: the rules.
      cells: two or more, for their shapes.
      key: of the draw.

    Returns:
      The players.
    """
    keys = jax.random.split(key)
    drawn = game.generator.init(keys[0], cells), game.discriminator.init(keys[1], cells, cells)
    return Players(*(Player(variables, game.optimizer.init(variables)) for variables in drawn))


def rewards(discriminator: Discriminator, variables: Any, true: CellGraph, graph: CellGraph) -> jax.Array:
    """What cells are worth: the mean over the true ones of the probability that such a pair has two of them.

    Args:
      discriminator: the network.
      variables: its parameters.
      true: the best cells.
      graph: cells.

    Returns:
      float32 [cells], between 0 and 1.
    """
    firsts, seconds = (embed(discriminator, variables, cells) for cells in (true, graph))
    pairs = jnp.broadcast_arrays(firsts[:, None], seconds[None])
    return jnp.mean(jax.nn.sigmoid(pair(discriminator, variables, *pairs)), axis=0)


def discriminate(
    game: Game, player: Player, true: CellGraph, generated: CellGraph, labels: jax.Array, key: jax.Array
) -> tuple[Player, jax.Array]:
    """One gradient step of the discriminator, on as many pairs of true cells as of a true and a generated one.

    Args:
      game: the rules.
      player: the discriminator.
      true: the best cells, with one leading axis.
      generated: as many others.
      labels: float32 [cells], 1 for those of the others that are true, too.
      key: decides the pairs of true cells.

    Returns:
      The player after the step, and the share of pairs that it judged right before, 0 to 1.
    """
    count = len(labels)

    def loss(variables: Any) -> tuple[jax.Array, jax.Array]:
        firsts, others = (embed(game.discriminator, variables, cells) for cells in (true, generated))
        seconds = jnp.concatenate([firsts[jax.random.permutation(key, count)], others])
        logits = pair(game.discriminator, variables, jnp.concatenate([firsts, firsts]), seconds)
        targets = jnp.concatenate([jnp.ones(count), labels])
        right = jnp.mean((logits > 0) == (targets > 0.5))
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets)), right

    gradient, right = jax.grad(loss, has_aux=True)(player.variables)
    updates, opt_state = game.optimizer.update(gradient, player.opt_state, player.variables)
    return Player(optax.apply_updates(player.variables, updates), opt_state), right


def play(
    game: Game, players: Players, true: CellGraph, is_true: Callable[[CellGraph], jax.Array], key: jax.Array
) -> tuple[Players, dict[str, jax.Array]]:
    """A round: steps of the discriminator on what the generator writes, then updates of the generator.

    Args:
      game: the rules.
      players: both networks.
      true: the best cells.
      is_true: ``is_true(graph) -> bool``, whether generated cells are among them.
      key: of the round.

    Returns:
      The players after it; and the measures of the last update, see `gaea_jax.blackbox.ppo.update`, with
      ``pair_accuracy``, the share of pairs that the discriminator judged right, 0 to 1.
    """
    drawing, pairing, writing = jax.random.split(key, 3)
    steps, count = game.discriminator_steps, len(true.labels)
    written, _ = sample(game.generator, players.generator.variables, drawing, jnp.ones(steps * count))
    generated = jax.tree.map(lambda leaf: leaf.reshape(steps, count, *leaf.shape[1:]), written)
    labels = is_true(generated).astype(jnp.float32)

    def learn(player: Player, xs: tuple[CellGraph, jax.Array, jax.Array]) -> tuple[Player, jax.Array]:
        return discriminate(game, player, true, *xs)

    judge, right = jax.lax.scan(learn, players.discriminator, (generated, labels, jax.random.split(pairing, steps)))
    reward = partial(rewards, game.discriminator, judge.variables, true)

    def write(player: Player, key: jax.Array) -> tuple[Player, dict[str, jax.Array]]:
        variables, opt_state, measures = update(game.settings, game.generator, game.optimizer, reward, *player, key)
        return Player(variables, opt_state), measures

    writer, measures = jax.lax.scan(write, players.generator, jax.random.split(writing, game.generator_updates))
    last = {name: values[-1] for name, values in measures.items()}
    return Players(writer, judge), {**last, "pair_accuracy": jnp.mean(right)}
