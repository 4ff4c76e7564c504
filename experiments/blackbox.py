"""Searches a tabular benchmark by queries alone: ``python -m experiments.blackbox --table nb201.npz --trials 100``."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.cli import main
from gaea_jax.benchmarks.npz import read_arrays
from gaea_jax.blackbox import OPTIONS, BlackboxConfig, BlackboxResult, blackbox, statistics
from gaea_jax.errors import UsageError
from gaea_jax.plot.anytime import anytime
from gaea_jax.train.folder import RunFolder
from gaea_jax.versions import versions

# Of a curve in the plot.
POINTS = 60
AXES = {
    "rank": "rank by what the search sees",
    "valid": "validation (%)",
    "test": "test accuracy (%)",
    "test_rank": "rank by test accuracy",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(BlackboxConfig):
    """The flags: a `BlackboxConfig`, and what to compare it with.

    Attributes:
      against: folders of finished runs of other algorithms on the same benchmark, with as many trials.
    """

    against: tuple[pathlib.Path, ...] = ()


def run(flags: Flags) -> None:
    """Runs the trials, compares them, and writes and prints what they found."""
    config = BlackboxConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(BlackboxConfig)})
    if config.out is None:
        out = pathlib.Path("runs", "-".join(("blackbox", config.space, config.algorithm, config.dataset)))
        config = dataclasses.replace(config, out=out)
    others = {path: archive(path, config) for path in flags.against}
    result = blackbox(config)
    curves = {config.algorithm: statistics.anytime(result.benchmark, result.ids, result.scores)}
    tests = {}
    for path, (name, *archives) in others.items():
        label = name if name not in curves else f"{name} ({path})"
        curves[label] = statistics.anytime(result.benchmark, *archives)
        tests[label] = statistics.compare(curves[config.algorithm], curves[label])
    write(result, curves, tests)
    show(result, curves[config.algorithm], tests)


def archive(path: pathlib.Path, config: BlackboxConfig) -> tuple[str, np.ndarray, np.ndarray]:
    """The algorithm of a finished run and the candidates of its trials.

    Args:
      path: its folder.
      config: of the run that is to be compared with it.

    Returns:
      Name of the algorithm, and ids and scores, [trials, budget].

    Raises:
      UsageError: on ``against``, if there is no finished run, or one of another benchmark or of other trials.
    """
    try:
        identity = dict(json.loads((path / "config.json").read_text())["identity"])
        arrays = read_arrays(path / "archives.npz", ("ids", "scores"))
        name, ids, scores = identity["--algorithm"], arrays["ids"], arrays["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError("against", f"{path} holds no finished run of this script") from error
    free = {"--algorithm", "--budget", *(f"--{name.replace('_', '-')}" for name in OPTIONS)}
    for flag, value in config.identify().items():
        if flag not in free and identity.get(flag) != value:
            raise UsageError("against", f"{path} was run with {flag} {identity.get(flag)}, not {value}")
    return name, ids, scores


def write(result: BlackboxResult, curves: dict[str, statistics.Curves], tests: dict[str, Any]) -> None:
    """Writes ``result.json`` and the plot of a run into its folder."""
    config = result.config
    assert config.out is not None
    ours = curves[config.algorithm]
    budget = ours.rank.shape[1]
    points = sorted({int(point) for point in np.linspace(1, budget, POINTS)})
    drawn = {
        name: statistics.curve_records(of, [point for point in points if point <= of.rank.shape[1]])
        for name, of in curves.items()
    }
    labels = {name: AXES[name] for name in ("rank", *ours.reported)}
    anytime(drawn, points, labels, config.out / "plots" / "anytime.png")
    best = result.ids[np.arange(len(result.ids)), result.scores.argmax(axis=1)]
    found = {
        **{name: value for name, value in config.fields().items() if name not in ("out", "resume", *OPTIONS)},
        "options": config.options(),
        "best": [
            {"genotype": result.benchmark.text(int(i)), "score": float(score)}
            for i, score in zip(best, result.scores.max(axis=1), strict=True)
        ],
        "budgets": statistics.at_budgets(ours),
        "hits": statistics.first_hits(ours),
        "against": tests,
        "rounds": result.rounds.tolist(),
        "measures": result.records[-1],
        "wall_s": round(result.wall_s, 3),
        "versions": versions(),
    }
    RunFolder(config.out, {}).write_json("result.json", found)


def show(result: BlackboxResult, curves: statistics.Curves, tests: dict[str, Any]) -> None:
    """Prints what the trials found, a line for each number of queries."""
    for record in statistics.at_budgets(curves):
        parts = [
            f"{name} {value['mean']:.2f} ± {value['std']:.2f}" for name, value in record.items() if name != "queries"
        ]
        print(f"{record['queries']} queries: {', '.join(parts)}")
    for hit in statistics.first_hits(curves):
        median = "" if hit["median"] is None else f", after {hit['median']:.0f} queries in the median"
        print(f"rank {hit['rank']} found in {100 * hit['share']:.0f} % of the trials{median}")
    for name, records in tests.items():
        for record in records:
            difference = f"rank {record['difference']:+.1f}, p {record['p']:.2g}"
            print(f"{record['queries']} queries, less {name}: {difference}")
    print(f"{result.config.trials} trials in {result.wall_s:.0f} s")


def one_device_a_core() -> None:
    """Makes each core of a CPU a device of its own, unless JAX was told otherwise: a trial does not fill several."""
    told = jax.config.values["jax_num_cpu_devices"] > 0 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if not told:
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


if __name__ == "__main__":
    one_device_a_core()
    main(run, Flags, "Search a tabular benchmark by queries, in many trials at once.")
