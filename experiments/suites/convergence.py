"""Iterations that exponentiated gradient and projected gradient need on a simplex of k options.

The problem: minimise <c, p> over the k-simplex for c = (0, gap, ..., gap), from the uniform point, with
gradients c plus independent noise, uniform on [-noise, noise]. What counts is the averaged iterate, and
how far its value is above the minimum in the mean over the seeds.

Four curves against k:

- *theory*: the step sizes that the regret bounds are proved for, sqrt(2 ln k / T) for exponentiated
  gradient and sqrt(2 / (k T)) for projected gradient, where T is the number of iterations announced
  beforehand. Each T on a grid of ratio sqrt(2) is run with its own step; the smallest whose value is below
  epsilon counts.
- *tuned*: the best of one grid of constant steps, the same for both methods and every k; the first
  iteration at which any step of the grid is below epsilon counts. The search walks the grid from the best
  step of the k before, until the next step is no better.

The theory (`Li et al, section 3.1 <https://arxiv.org/abs/2004.07802>`_, after Beck and Teboulle, 2003,
theorem 5.1) bounds the iterations by O(log k / epsilon^2) and O(k / epsilon^2). Those are upper bounds;
the tuned curves show what is left of the difference on this problem.

Took four minutes with the defaults on two CPU cores that were busy with other work.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from matplotlib.axes import Axes

from gaea_jax import optim
from gaea_jax.errors import UsageError

METHODS: dict[str, Callable[[Array], Any]] = {
    "exponentiated gradient": optim.exponentiated_gradient,
    "projected gradient": lambda rate: optim.mirror_descent(rate, optim.euclidean()),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    ks: tuple[int, ...] = tuple(2**i for i in range(1, 11))
    """Numbers of options, ascending."""
    seeds: int = 20
    """Independent noise sequences."""
    epsilon: float = 0.04
    """The mean value above the minimum that counts as reached; the start is at gap * (1 - 1 / k)."""
    gap: float = 0.1
    """Cost of every option but the first."""
    noise: float = 1.0
    """Half the width of the uniform noise on every coordinate of the gradient."""
    steps: tuple[float, ...] = tuple(4.0**i for i in range(-8, 5))
    """The grid of constant steps for the tuned curves."""
    budget: int = 1_000_000
    """Iterations after which a run gives up; its entry is then null."""
    seed: int = 0
    """Seed of all noise."""


def _noise(config: Config) -> Array:
    """A table of independent draws, of which every step reads a window at a random offset.

    Reading costs a tenth of drawing afresh, which would take most of the time. A window overlaps a given
    other one with odds of one in a hundred at most, and then at other coordinates.
    """
    size = max(2**22, 200 * config.seeds * max(config.ks))
    return jax.random.uniform(jax.random.key(config.seed), (size,), minval=-config.noise, maxval=config.noise)


def _out_of_reach(config: Config, t: Array, value: Array, horizon: Array) -> Array:
    """No iterate lies below the minimum, so a sum above epsilon * horizon can only stay there."""
    return value * t > config.epsilon * horizon


def _mean_value(
    method: str, config: Config, k: int, step: Array, table: Array, stop: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """Runs all seeds side by side until ``stop(t, value)``; returns t and the value there.

    The value is that of the averaged iterate above the minimum, in the mean over the seeds.
    """
    cost = jnp.full(k, config.gap).at[0].set(0.0)
    size = config.seeds * k
    key = jax.random.key(config.seed + 1)
    solver = METHODS[method](step)

    def body(carry: tuple[Array, Array, Any, Array]) -> tuple[Array, Array, Any, Array]:
        t, points, states, value = carry
        offset = jax.random.randint(jax.random.fold_in(key, t), (), 0, len(table) - size)
        noise = lax.dynamic_slice(table, (offset,), (size,)).reshape(points.shape)
        value = value + (jnp.mean(points @ cost) - value) / (t + 1)
        updates, states = jax.vmap(solver.update)(cost + noise, states, points)
        return t + 1, points + updates, states, value

    points = jnp.full((config.seeds, k), 1 / k)
    start = (jnp.int32(0), points, jax.vmap(solver.init)(points), jnp.float32(config.gap))
    t, _, _, value = lax.while_loop(lambda carry: ~stop(carry[0], carry[3]), body, start)
    return t, value


def _theory(method: str, config: Config, k: int, table: Array, first: int) -> dict[str, Any]:
    """The smallest horizon of the grid, from its entry ``first`` on, whose own step gets below epsilon."""

    @jax.jit
    def run_for(table: Array, step: Array, horizon: Array) -> tuple[Array, Array]:
        def stop(t: Array, value: Array) -> Array:
            return (t >= horizon) | _out_of_reach(config, t, value, horizon)

        return _mean_value(method, config, k, step, table, stop)

    for index in range(first, math.ceil(2 * math.log2(config.budget))):
        horizon = round(2 ** (index / 2))
        step = math.sqrt((2 * math.log(k) if method == "exponentiated gradient" else 2 / k) / horizon)
        t, value = run_for(table, jnp.float32(step), jnp.int32(horizon))
        if int(t) == horizon and float(value) <= config.epsilon:
            return {"iterations": horizon, "step": step, "index": index}
    return {"iterations": None, "step": None, "index": first}


def _tuned(method: str, config: Config, k: int, table: Array, first: int, limit: int) -> dict[str, Any]:
    """The first iteration before ``limit`` at which a step of the grid is below epsilon, that step and its index.

    Walks the grid down and then up from its entry ``first``, and turns back where the next step is no better.
    """

    @jax.jit
    def run_until_below(table: Array, step: Array, limit: Array) -> tuple[Array, Array]:
        def stop(t: Array, value: Array) -> Array:
            reached = (t > 0) & (value <= config.epsilon)
            return reached | (t >= limit) | _out_of_reach(config, t, value, limit)

        return _mean_value(method, config, k, step, table, stop)

    best: dict[str, Any] = {"iterations": None, "step": None, "index": first}
    for walk in (range(first, -1, -1), range(first + 1, len(config.steps))):
        for index in walk:
            t, value = run_until_below(table, jnp.float32(config.steps[index]), jnp.int32(limit))
            if float(value) <= config.epsilon and int(t) < limit:
                limit = int(t)
                best = {"iterations": limit, "step": config.steps[index], "index": index}
            elif best["iterations"] is not None:
                break
    return best


def run(config: Config) -> dict[str, Any]:
    """Measures the four curves.

    Args:
      config: what to run.

    Returns:
      ``config``; ``curves``, by name the ``iterations`` (null where the budget ran out) and the ``step``
      for each k; ``exponents``, by name the b of the least-squares fit iterations ~ k^b; and
      ``conclusion``, one line.

    Raises:
      UsageError: a k below 2, or an epsilon that the uniform start already reaches.
    """
    if min(config.ks) < 2:
        raise UsageError("ks", f"a simplex needs at least 2 options, got {min(config.ks)}.")
    if config.epsilon >= config.gap * (1 - 1 / min(config.ks)):
        raise UsageError("epsilon", f"the uniform start is already below {config.epsilon}; ask for less.")
    table = _noise(config)
    middle = min(range(len(config.steps)), key=lambda i: abs(math.log(config.steps[i] / 0.1)))
    curves: dict[str, dict[str, list[Any]]] = {}
    for method in METHODS:
        horizon, step = 0, middle
        found: dict[str, list[dict[str, Any]]] = {f"{method}, theory": [], f"{method}, tuned": []}
        for k in config.ks:
            # Each search goes on where that for the smaller k ended.
            theory = _theory(method, config, k, table, horizon)
            # The best step should not need much more than that of the theory.
            limit = min(config.budget, 4 * (theory["iterations"] or config.budget))
            tuned = _tuned(method, config, k, table, step, limit)
            horizon, step = theory.pop("index"), tuned.pop("index")
            found[f"{method}, theory"].append(theory)
            found[f"{method}, tuned"].append(tuned)
            print(
                f"k = {k}, {method}: {theory['iterations']} iterations with the step of the theory, "
                f"{tuned['iterations']} tuned",
                flush=True,
            )
        for name, entries in found.items():
            curves[name] = {key: [entry[key] for entry in entries] for key in ("iterations", "step")}
    exponents = {name: _exponent(config.ks, curve["iterations"]) for name, curve in curves.items()}
    return {
        "config": dataclasses.asdict(config),
        "curves": curves,
        "exponents": exponents,
        "conclusion": _conclude(config, curves, exponents),
    }


def _exponent(ks: tuple[int, ...], iterations: list[int | None]) -> float | None:
    """The slope in logarithms over the larger half of the ks: the smallest start next to epsilon."""
    half = list(zip(ks, iterations, strict=True))[len(ks) // 2 :]
    pairs = [(math.log(k), math.log(n)) for k, n in half if n is not None]
    return float(np.polyfit([x for x, _ in pairs], [y for _, y in pairs], 1)[0]) if len(pairs) > 1 else None


def _conclude(config: Config, curves: dict[str, Any], exponents: dict[str, float | None]) -> str:
    # The same fit to log k itself: what logarithmic growth looks like as an exponent on these ks.
    log_k = _exponent(config.ks, [round(1e6 * math.log(k)) for k in config.ks])
    tuned, theory = exponents["projected gradient, tuned"], exponents["projected gradient, theory"]
    rival = exponents["exponentiated gradient, tuned"]
    if tuned is None or theory is None or rival is None or log_k is None:
        return "Too few runs ended within the budget to say how projected gradient grows with k."
    ends = [n for n in curves["projected gradient, tuned"]["iterations"] if n is not None]
    verdict = "does not grow faster than log k" if tuned <= log_k else "grows faster than log k"
    return (
        f"Tuned projected gradient {verdict}: {ends[0]} to {ends[-1]} iterations, k^{tuned:.2f} on the larger ks, "
        f"where log k is k^{log_k:.2f}, tuned exponentiated gradient k^{rival:.2f}, and projected gradient with "
        f"the step of its bound k^{theory:.2f}."
    )


def plot(result: dict[str, Any], axes: Axes) -> None:
    """Draws iterations against k, both logarithmic.

    Args:
      result: what :func:`run` returned.
      axes: to draw on.
    """
    ks = result["config"]["ks"]
    for name, curve in result["curves"].items():
        iterations = [math.nan if n is None else n for n in curve["iterations"]]
        style = "-" if name.endswith("tuned") else "--"
        color = "C0" if name.startswith("exponentiated") else "C1"
        axes.loglog(ks, iterations, style, color=color, marker="o", markersize=4, label=name)
    axes.set_xlabel("options k")
    axes.set_ylabel(f"iterations to {result['config']['epsilon']:g} above the minimum")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.legend()
