"""GA-NAS: a generator is fitted to the best cells so far by a game against a discriminator, and samples the next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gaea_jax.benchmarks import Candidates
from gaea_jax.blackbox.base import Algorithm, Archive, unseen
from gaea_jax.blackbox.discriminator import Discriminator
from gaea_jax.blackbox.game import Game, Players, enter, play, rewards
from gaea_jax.blackbox.generator import Generator, sample
from gaea_jax.blackbox.ppo import PPO
from gaea_jax.errors import UsageError
from gaea_jax.spaces.grammar import CellGraph


class GANAS(NamedTuple):
    """The networks, which go on from round to round, and what the last round measured.

    Attributes:
      players: generator and discriminator.
      measures: scalars by name.
    """

    players: Players
    measures: dict[str, jax.Array]


MEASURES = ("reward", "entropy", "clipped", "kl", "pair_accuracy", "distinct", "known", "draws", "filled")


def ga_nas(
    *,
    initial: int = 20,
    truth: int = 5,
    batch: int = 10,
    rounds: int = 2,
    discriminator_steps: int = 20,
    generator_updates: int = 10,
    entropy: float = 0.02,
    learning_rate: float = 1e-3,
    pool: int = 1024,
    temperatures: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0),
    reset_discriminator: bool = False,
    rank: bool = False,
    width: int = 32,
    layers: int = 4,
) -> Algorithm:
    """The generator never sees a score: its reward is how the discriminator judges a cell beside the best so far.

    Each round plays the game and then samples a pool, of which the first cells that are new are evaluated. Should there
    be few, as late in a search when the policy has collapsed, uniform ones make up half of the batch.

    No hyper-parameter of the paper could be read but its ideas; the sizes and rates are ours.

    Args:
      initial: candidates that are drawn uniformly at first, at least ``truth``.
      truth: how many of the best, of all that was evaluated, the discriminator takes for true.
      batch: most evaluations a round.
      rounds: of the game, before each sampling.
      discriminator_steps: gradient steps of the discriminator in each, on ``truth`` pairs of true cells and as many of
        a true and a generated one. What is generated and true counts as true.
      generator_updates: of PPO in each.
      entropy: weight of the policy's entropy in these.
      learning_rate: of Adam, for both networks; the global norm of gradients is clipped at 1.
      pool: cells that are sampled for a batch.
      temperatures: of the sampling, for equal parts of the pool in their order; those of more than 1 find what is new
        near the best.
      reset_discriminator: draw the discriminator anew before each round, and not go on with it.
      rank: take of the pool what the discriminator judges best, and not what was sampled first.
      width: of all layers of both networks.
      layers: of their encoders.

    Returns:
      The `Algorithm`; it starts over from nothing but random candidates with every trial.

    Raises:
      UsageError: on ``truth``, if it is more than ``initial``; on ``batch``, if it is more than ``pool``; on ``pool``,
        if the temperatures do not divide it.

    References:
      Rezaei et al, `Generative Adversarial Neural Architecture Search <https://arxiv.org/abs/2105.09356>`_, 2021.
    """
    if not 2 <= truth <= initial:
        raise UsageError("truth", f"must be 2 to {initial}, the initial candidates, not {truth}")
    if batch > pool:
        raise UsageError("batch", f"must be at most the {pool} cells of the pool, not {batch}")
    if pool % len(temperatures):
        raise UsageError("pool", f"must be a multiple of the {len(temperatures)} temperatures, not {pool}")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
    settings = PPO(entropy=entropy)
    ladder = jnp.repeat(jnp.asarray(temperatures), pool // len(temperatures))

    def game(candidates: Candidates) -> Game:
        grammar = candidates.grammar
        generator = Generator(grammar, width, layers)
        discriminator = Discriminator(len(grammar.labels), width, layers)
        return Game(generator, discriminator, optimizer, settings, discriminator_steps, generator_updates)

    def init(key: jax.Array, candidates: Candidates, archive: Archive) -> GANAS:
        players = enter(game(candidates), candidates.graph(archive.ids[:2]), key)
        return GANAS(players, {name: jnp.float32(0) for name in MEASURES})

    def propose(
        key: jax.Array, candidates: Candidates, archive: Archive, state: GANAS
    ) -> tuple[GANAS, jax.Array, jax.Array]:
        best, _ = archive.best(truth)
        true = candidates.graph(best)
        rules = game(candidates)

        def is_true(graph: CellGraph) -> jax.Array:
            ids = candidates.index(graph)
            among = candidates.identity[ids][..., None] == candidates.identity[best]
            return jnp.any(among, axis=-1) & (ids >= 0)

        def again(players: Players, key: jax.Array) -> tuple[Players, dict[str, jax.Array]]:
            return play(rules, players, true, is_true, key)

        playing, drawing, filling = jax.random.split(key, 3)
        players = state.players
        if reset_discriminator:
            anew = enter(rules, true, jax.random.fold_in(playing, rounds))
            players = players._replace(discriminator=anew.discriminator)
        players, measures = jax.lax.scan(again, players, jax.random.split(playing, rounds))
        graphs, _ = sample(rules.generator, players.generator.variables, drawing, ladder)
        order = jnp.arange(pool)
        if rank:
            judged = rewards(rules.discriminator, players.discriminator.variables, true, graphs)
            order = jnp.argsort(jnp.argsort(-judged))
        ids, valid, found = _chosen(filling, candidates, archive, candidates.index(graphs), order, batch)
        return GANAS(players, {**{name: values[-1] for name, values in measures.items()}, **found}), ids, valid

    def observe(candidates: Candidates, archive: Archive, state: GANAS, ids: jax.Array, scores: jax.Array) -> GANAS:
        return state

    return Algorithm(initial, batch, init, propose, observe, lambda state: state.measures)


def _chosen(
    key: jax.Array, candidates: Candidates, archive: Archive, ids: jax.Array, order: jax.Array, batch: int
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The first of a pool that are new, feasible and of different identities, made up to half a batch.

    Args:
      key: of the uniform candidates.
      candidates: all.
      archive: what was evaluated.
      ids: int32 [pool], -1 for what is not in the table.
      order: int32 [pool], the place of each in the order in which they are looked at.
      batch: how many.

    Returns:
      int32 [batch]; bool [batch], which of them count; and measures: how many ``distinct`` candidates the pool has,
      which share of it is ``known`` because it was evaluated before, how many ``draws`` of it were looked at, and how
      many uniform ones ``filled`` the batch.
    """
    pool = len(ids)
    identity = jnp.where(ids >= 0, candidates.identity[ids], -1)
    seen = (ids >= 0) & archive.seen(candidates, ids)
    usable = (ids >= 0) & candidates.feasible[ids] & ~seen
    earliest = jax.ops.segment_min(jnp.where(usable, order, pool), identity, num_segments=len(archive.place))
    first = usable & (order == earliest[identity])
    _, taken = jax.lax.top_k(jnp.where(first, -order, -pool), batch)
    valid = first[taken]
    found = jnp.sum(valid)
    fill = jnp.maximum(max(batch // 2, 1) - found, 0)
    uniform = unseen(key, candidates, archive, batch)
    place = jnp.arange(batch)
    chosen = jnp.where(valid, ids[taken], uniform[jnp.maximum(place - found, 0)])
    sorted_ids = jnp.sort(ids)
    measures = {
        "distinct": (sorted_ids[0] >= 0) + jnp.sum((sorted_ids[1:] != sorted_ids[:-1]) & (sorted_ids[1:] >= 0)),
        "known": jnp.mean(seen),
        "draws": jnp.where(found == batch, 1 + order[taken[-1]], pool),
        "filled": fill,
    }
    return chosen, place < found + fill, {name: value.astype(jnp.float32) for name, value in measures.items()}
