"""NASP: one operation on each kept edge in every step, moved by Adam within a box."""

import jax
import jax.numpy as jnp
import optax

from gaea_jax import simplex
from gaea_jax.errors import UsageError
from gaea_jax.methods.base import Arch, Evaluate, Memory, Method, Space, Tables, clipped, learnt_operations
from gaea_jax.nets import Mixture, burdens
from gaea_jax.optim import box, proximal
from gaea_jax.spaces import derive as heaviest

TIES = ("first", "sticky")
KEEPS = ("one", "magnitude")
GENOTYPE_RULES = ("discrete", "softmax")


def nasp(
    learning_rate: optax.ScalarOrSchedule = 3e-4,
    *,
    clip_norm: float | None = None,
    weight_decay: float = 1e-3,
    complexity_weight: float = 0.0,
    init_noise: float = 1e-3,
    keep: str = "one",
    tie: str = "first",
    genotype_rule: str = "discrete",
) -> Method:
    """Search by proximal iterations: the network of a step is always a discrete one.

    ``arch`` are continuous weights in [0, 1], without a softmax. A step evaluates the network at the nearest point of
    the discrete set, the selection that the space would derive (one operation an edge; in the DARTS family on two edges
    into a node), and applies the gradient found there to the continuous weights: a lazy proximal step. So this is the
    relaxation ``weights -> discrete point`` and the optimiser `gaea_jax.optim.proximal` of Adam and the box; the weight
    step computes what is selected and nothing else. In the architecture step the other operations run forward only, for
    the gradients by which they may come back.

    Args:
      learning_rate: step of Adam (betas 0.5 and 0.999), a number or a schedule of the architecture step.
      clip_norm: largest global norm of the architecture gradient, or None.
      weight_decay: L2 factor that is added to the gradient of the continuous weights.
      complexity_weight: factor of the sum, over the edges of normal cells, of the burden of what is selected times the
        square of its weight; see `gaea_jax.nets.burdens`. Only what is selected is penalised, as in the released code.
      init_noise: deviation of the normal noise around 0.5 at the start; the released code has none, so that its first
        network only skips.
      keep: the weight of a selected operation, ``"one"`` or its ``"magnitude"``.
      tie: which of equal weights is selected: the ``"first"``, or, ``"sticky"``, what was selected before. Weights of 0
        and of 1 are often equal.
      genotype_rule: what is derived: what the last step ran, ``"discrete"``, or, ``"softmax"``, what the released code
        derives, which ranks the edges of a node by the largest softmax of their weights and may name others.

    Returns:
      The `Method`. Its ``weights`` are the continuous ones divided by the sum of their row, alike where that is 0; it
      remembers the selection. ``init`` raises UsageError on ``space`` if that has the operation ``none``.

    Raises:
      UsageError: on ``keep``, ``tie`` or ``genotype_rule``, if it is unknown; on ``complexity_weight``,
        ``init_noise`` or ``weight_decay`` below 0.

    References:
      Yao et al, `Efficient Neural Architecture Search via Proximal Iterations <https://arxiv.org/abs/1905.13577>`_,
      2020, algorithm 2. What the paper leaves open is as in the released code.
    """
    for argument, value, known in (
        ("keep", keep, KEEPS),
        ("tie", tie, TIES),
        ("genotype_rule", genotype_rule, GENOTYPE_RULES),
    ):
        if value not in known:
            raise UsageError(argument, f"{value!r} is unknown; known are {', '.join(known)}")
    for argument, number in (
        ("complexity_weight", complexity_weight),
        ("init_noise", init_noise),
        ("weight_decay", weight_decay),
    ):
        if not number >= 0:
            raise UsageError(argument, f"must be 0 or more, not {number}")

    def init(space: Space, key: jax.Array) -> Arch:
        choices = learnt_operations(space).items()
        if any("none" in choice.options for _, choice in choices):
            sentence = "has the operation none, by which a discrete network can fall apart; then nothing has a gradient"
            raise UsageError("space", f"{space.name} {sentence}; use its variant without")
        keys = jax.random.split(key, len(choices))
        noise = {name: jax.random.normal(k, choice.shape) for k, (name, choice) in zip(keys, choices, strict=True)}
        return {name: jnp.clip(0.5 + init_noise * table, 0, 1) for name, table in noise.items()}

    def weights(space: Space, arch: Arch) -> Tables:
        # The box has rows of zeros, which prefer nothing.
        rows = {name: jnp.where(jnp.any(table > 0, axis=-1, keepdims=True), table, 1) for name, table in arch.items()}
        return {name: simplex.normalise(table) for name, table in rows.items()}

    def select(space: Space, arch: Arch, memory: Memory) -> Tables:
        if tie == "sticky" and memory:
            arch = {name: simplex.break_ties(table, memory[name]) for name, table in arch.items()}
        return space.select(arch)

    def mixture(
        space: Space, arch: Arch, memory: Memory, key: jax.Array, step: jax.typing.ArrayLike, phase: str
    ) -> Mixture:
        active = select(space, arch, memory)
        point = {}
        for name, table in arch.items():
            value = jnp.where(active[name], 1.0 if keep == "one" else table, 0.0)
            # The value of the discrete point, the gradient of the continuous one.
            point[name] = jax.lax.stop_gradient(value) + (table - jax.lax.stop_gradient(table))
        return Mixture(point, active, "skip" if phase == "eval" else "probe")

    def regularizer(space: Space, arch: Arch, mixture: Mixture) -> jax.Array:
        if not complexity_weight:
            return jnp.zeros(())
        penalties = [jnp.sum(share * mixture.weights[name] ** 2) for name, share in burdens(space).items()]
        return complexity_weight * jnp.sum(jnp.stack(penalties))

    def derive(space: Space, arch: Arch, memory: Memory, key: jax.Array, evaluate: Evaluate | None) -> object:
        if genotype_rule == "softmax":
            return heaviest(space, {name: simplex.softmax(table) for name, table in arch.items()})
        return space.decode(select(space, arch, memory))

    adam = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1=0.5))
    return Method(
        init=init,
        weights=weights,
        mixture=mixture,
        regularizer=regularizer,
        optimizer=lambda space: clipped(proximal(adam, box()), clip_norm),
        derive=derive,
        remember=lambda space, arch, memory, step: select(space, arch, memory),
    )
