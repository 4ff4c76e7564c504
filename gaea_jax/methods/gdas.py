"""GDAS: one sampled operation an edge, with straight-through gradients, moved by Adam or exponentiated gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gaea_jax.methods.base import Arch, Memory, Method, Space, learnt_operations
from gaea_jax.methods.darts import darts
from gaea_jax.methods.gaea import gaea
from gaea_jax.nets import Mixture


def gdas(
    learning_rate: optax.ScalarOrSchedule = 3e-4,
    *,
    temperature: optax.ScalarOrSchedule = 10.0,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    weight_decay: float = 1e-3,
) -> Method:
    """Search by differentiable sampling: logits moved by Adam.

    Args:
      learning_rate: step of Adam (betas 0.5 and 0.999), a number or a schedule of the architecture step.
      temperature: of the softmax that the gradient passes through, a number or a schedule of the step; the reference
        lowers it from 10 to 0.1 over the search.
      clip_norm: largest global norm of the architecture gradient, or None.
      entropy_weight: factor of the divergence of the softmax of the logits from uniform, in nats.
      weight_decay: L2 factor that is added to the gradient of the logits.

    Returns:
      The `Method`; ``arch`` are tables of logits as for `darts`.

    References:
      Dong and Yang, `Searching for a Robust Neural Architecture in Four GPU Hours
      <https://arxiv.org/abs/1910.04465>`_, 2019
    """
    method = darts(learning_rate, clip_norm=clip_norm, entropy_weight=entropy_weight, weight_decay=weight_decay)
    return _sampling(method, lambda arch: arch, temperature)


def gaea_gdas(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    *,
    temperature: optax.ScalarOrSchedule = 10.0,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    min_prob: float = 1e-5,
) -> Method:
    """GDAS in GAEA's geometry: a point on the simplex moved by exponentiated gradient, its logarithm as the logits.

    The step is the paper's (GAEA, appendix C.3); the released configuration has 0.01 and an ``entropy_weight`` of 0.01.

    Args:
      learning_rate: step of the exponentiated gradient, a number or a schedule of the architecture step.
      temperature: as for `gdas`.
      clip_norm: largest global norm of the architecture gradient, or None.
      entropy_weight: factor of the divergence of the point from uniform, in nats.
      min_prob: floor of an entry of the point.

    Returns:
      The `Method`; ``arch`` are points of the simplex as for `gaea`.

    References:
      Li et al, `Geometry-Aware Gradient Algorithms for Neural Architecture Search
      <https://arxiv.org/abs/2004.07802>`_, 2021, section 4.3
    """
    method = gaea(learning_rate, clip_norm=clip_norm, entropy_weight=entropy_weight, min_prob=min_prob)

    def logarithm(point: jax.Array) -> jax.Array:
        # Zero, which a point without a floor can reach, would give infinite logits and a gradient of NaN.
        return jnp.log(jnp.maximum(point, jnp.finfo(point.dtype).tiny))

    return _sampling(method, logarithm, temperature)


def _sampling(method: Method, logits: Callable[[jax.Array], jax.Array], temperature: optax.ScalarOrSchedule) -> Method:
    """The method with a hard Gumbel sample in every phase of training, and the heaviest options in evaluation."""

    def mixture(
        space: Space, arch: Arch, memory: Memory, key: jax.Array, step: jax.typing.ArrayLike, phase: str
    ) -> Mixture:
        if phase == "eval":
            return Mixture.derived(space.select(method.weights(space, arch)))
        tau = temperature(step) if callable(temperature) else temperature
        hard, active = {}, {}
        for k, (name, table) in zip(jax.random.split(key, len(arch)), arch.items(), strict=True):
            noisy = logits(table) + jax.random.gumbel(k, table.shape, table.dtype)
            soft = jax.nn.softmax(noisy / tau)
            sample = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), table.shape[-1], dtype=table.dtype)
            # Grouped so that the value is exactly 0 or 1, and the gradient that of the softmax.
            hard[name] = sample + (soft - jax.lax.stop_gradient(soft))
            active[name] = sample.astype(bool)
        return Mixture(hard, active, "scalar")

    def init(space: Space, key: jax.Array) -> Arch:
        learnt_operations(space)
        return method.init(space, key)

    return method._replace(init=init, mixture=mixture)
