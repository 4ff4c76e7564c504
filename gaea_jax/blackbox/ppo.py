"""Proximal policy optimisation of a generator whose only reward comes with the finished cell."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gaea_jax.blackbox.generator import Generator, Variables, judge, sample
from gaea_jax.spaces.grammar import CellGraph


@dataclasses.dataclass(frozen=True)
class PPO:
    """The settings of an update.

    Attributes:
      episodes: cells that are written for an update.
      epochs: gradient steps on them, each on all.
      clip: how far the ratio of new and old probability counts, away from 1.
      entropy: weight of the entropy that is added to the objective.
      value: weight of the squared error of the expected reward.
    """

    episodes: int = 64
    epochs: int = 4
    clip: float = 0.2
    entropy: float = 0.02
    value: float = 0.5


def update(
    settings: PPO,
    generator: Generator,
    optimizer: optax.GradientTransformation,
    reward: Callable[[CellGraph], jax.Array],
    variables: Variables,
    opt_state: optax.OptState,
    key: jax.Array,
) -> tuple[Variables, optax.OptState, dict[str, jax.Array]]:
    """Writes cells, rewards them, and moves the policy.

    The reward comes last and is not discounted, so that the advantage of every decision of a cell is its reward less
    what was expected before the decision; advantages are normalised over all decisions.

    Args:
      settings: of the update.
      generator: the policy.
      optimizer: moves its parameters.
      reward: of finished cells, float32 [cells]; without gradient.
      variables: the parameters.
      opt_state: of the optimiser.
      key: of the cells.

    Returns:
      Parameters and state after the update; and the means over its cells of ``reward``, ``entropy`` (of a decision, in
      nats), and over its steps ``clipped``, the share of decisions out of reach of the clip, and ``kl``, how far the
      policy had moved before the last step, by the mean of log(old / new).

    References:
      Schulman et al, `Proximal Policy Optimization Algorithms <https://arxiv.org/abs/1707.06347>`_, 2017, equations 7
      and 9.
    """
    graph, _ = sample(generator, variables, key, jnp.ones(settings.episodes))
    rewards = jax.lax.stop_gradient(reward(graph))
    old = judge(generator, variables, graph)
    weights = old.active / jnp.sum(old.active)
    advantages = rewards[:, None] - old.values
    mean = jnp.sum(weights * advantages)
    spread = jnp.sqrt(jnp.sum(weights * (advantages - mean) ** 2))
    advantages = (advantages - mean) / (spread + 1e-6)

    def loss(variables: Variables) -> tuple[jax.Array, dict[str, jax.Array]]:
        new = judge(generator, variables, graph)
        log_ratio = new.log_probs - old.log_probs
        ratio = jnp.exp(log_ratio)
        within = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
        gain = jnp.sum(weights * jnp.minimum(ratio * advantages, within * advantages))
        error = jnp.sum(weights * (new.values - rewards[:, None]) ** 2)
        entropy = jnp.sum(weights * new.entropies)
        measures = {
            "entropy": entropy,
            "clipped": jnp.sum(weights * (ratio != within)),
            "kl": -jnp.sum(weights * log_ratio),
        }
        return settings.value * error - gain - settings.entropy * entropy, measures

    moved = jax.grad(loss, has_aux=True)

    def epoch(carry: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        variables, opt_state = carry
        gradient, measures = moved(variables)
        updates, opt_state = optimizer.update(gradient, opt_state, variables)
        return (optax.apply_updates(variables, updates), opt_state), measures

    (variables, opt_state), measures = jax.lax.scan(epoch, (variables, opt_state), length=settings.epochs)
    return (
        variables,
        opt_state,
        {
            "reward": jnp.mean(rewards),
            "entropy": measures["entropy"][0],
            "clipped": jnp.mean(measures["clipped"]),
            "kl": measures["kl"][-1],
        },
    )
