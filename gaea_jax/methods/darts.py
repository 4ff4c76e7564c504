"""DARTS: the mixture is the softmax of logits, moved by Adam."""

import jax
import optax

from gaea_jax import simplex
from gaea_jax.methods.base import Arch, Method, Space, Tables, clipped, derive_heaviest, entropic_regularizer, learnt
from gaea_jax.nets import Mixture


def darts(
    learning_rate: optax.ScalarOrSchedule = 3e-4,
    *,
    edges: bool = False,
    clip_norm: float | None = None,
    entropy_weight: float = 0.0,
    weight_decay: float = 1e-3,
) -> Method:
    """The softmax baseline.

    Args:
      learning_rate: step of Adam (betas 0.5 and 0.999), a number or a schedule of the architecture step.
      edges: learn the optional choices too, the weights of the edges into a node: the softmax of logits of their own,
        moved by the same Adam. Without, every edge weighs 1.
      clip_norm: largest global norm of the architecture gradient, edges included, or None.
      entropy_weight: factor of the divergence from the uniform mixture, in nats.
      weight_decay: L2 factor that is added to the gradient of the logits, before Adam as in the reference.

    Returns:
      The `Method`; ``arch`` are tables of logits, 1e-3 times standard normal at the start. With ``edges``, ``init``
      raises UsageError on ``space`` if its edges have no weights.

    References:
      Liu et al, `DARTS: Differentiable Architecture Search <https://arxiv.org/abs/1806.09055>`_, 2019
    """

    def init(space: Space, key: jax.Array) -> Arch:
        choices = learnt(space, optional=edges).items()
        keys = jax.random.split(key, len(choices))
        return {
            name: 1e-3 * jax.random.normal(k, choice.shape) for k, (name, choice) in zip(keys, choices, strict=True)
        }

    def weights(space: Space, arch: Arch) -> Tables:
        return {name: simplex.softmax(logits, segments=space.choices[name].segments) for name, logits in arch.items()}

    adam = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1=0.5))
    return Method(
        init=init,
        weights=weights,
        mixture=lambda space, arch, memory, key, step, phase: Mixture(weights(space, arch)),
        regularizer=entropic_regularizer(entropy_weight, weights),
        optimizer=lambda space: clipped(adam, clip_norm),
        derive=derive_heaviest(weights),
    )
