"""The schedules of the papers' recipes, and their optimiser of network weights, SGD."""

from typing import Any

import jax.numpy as jnp
import optax


def cosine(peak: float, floor: float, periods: int, period: int = 1) -> optax.Schedule:
    """Cosine from `peak` towards `floor` in equal stairs, as the papers' recipes have it (a stair an epoch).

    Args:
      peak: value in the first stair.
      floor: value that the stair after the last would have, and that all later steps have.
      periods: number of stairs.
      period: steps in a stair.

    Returns:
      A schedule of the step.

    Example:
      >>> schedule = cosine(0.1, 0.0, 50, 100)
      >>> round(float(schedule(25 * 100 + 99)), 6)
      0.05
    """

    def schedule(step: Any) -> Any:
        done = jnp.minimum(step // period, periods) / periods
        # Equal to (1 + cos(pi * done)) / 2, but in float32 that has no digits left near the end.
        return floor + (peak - floor) * jnp.cos(jnp.pi / 2 * done) ** 2

    return schedule


def linear(first: float, last: float, periods: int, period: int = 1) -> optax.Schedule:
    """From `first` to `last` in equal stairs, both included, such as the temperature of GDAS (a stair an epoch).

    Args:
      first: value in the first stair.
      last: value in the last stair, and after it.
      periods: number of stairs; a single one has the value `first`.
      period: steps in a stair.

    Returns:
      A schedule of the step.

    Example:
      >>> schedule = linear(10.0, 0.0, 11, 100)
      >>> float(schedule(399)), float(schedule(1099))
      (7.0, 0.0)
    """

    def schedule(step: Any) -> Any:
        done = jnp.minimum(step // period, periods - 1) / max(periods - 1, 1)
        return first + (last - first) * done

    return schedule


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    clip_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD as the papers' code has it: clip, then L2 decay added to the gradient, then momentum.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: factor of the running sum of gradients.
      weight_decay: L2 factor, on every parameter.
      nesterov: whether the momentum looks ahead.
      clip_norm: largest global norm of the gradient, or None.

    Returns:
      The transform.
    """
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(
        clip, optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov=nesterov)
    )
