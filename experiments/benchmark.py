"""Measures one thing a suite, and writes numbers and a picture.

python -m experiments.benchmark convergence --json result.json --plot convergence.png
"""

import json as jsonlib
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

from experiments.cli import guarded
from experiments.suites import convergence, data, kernels, kills, loops, methods, seeds, startup, supernet, tpu

# A suite is a module with a dataclass ``Config``, ``run(config) -> dict`` (JSON) and ``plot(result, axes)``.
SUITES = {
    "convergence": convergence,
    "data": data,
    "kernels": kernels,
    "kills": kills,
    "loops": loops,
    "methods": methods,
    "seeds": seeds,
    "startup": startup,
    "supernet": supernet,
    "tpu": tpu,
}


def command(suite: ModuleType) -> Callable[..., Callable[[], None]]:
    """The subcommand of a suite: its configuration's fields are flags, beside ``--json`` and ``--plot``.

    Args:
      suite: a module of ``experiments.suites``.

    Returns:
      A function of the flags; what it returns runs the suite, prints its conclusion and writes the files asked for.
    """

    def job(config: Any, json: Path | None = None, plot: Path | None = None) -> Callable[[], None]:
        return lambda: measure(suite, config, json, plot)

    job.__doc__ = suite.__doc__
    job.__annotations__["config"] = Annotated[suite.Config, tyro.conf.arg(name="")]
    return job


def measure(suite: ModuleType, config: Any, json: Path | None, plot: Path | None) -> None:
    """Runs a suite, prints its conclusion and writes its result.

    Args:
      suite: a module of ``experiments.suites``.
      config: its configuration.
      json: file for the numbers, or None.
      plot: file for the picture, or None.
    """
    start = time.perf_counter()
    result = suite.run(config)
    result["command"] = shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]])
    result["wall_s"] = round(time.perf_counter() - start, 1)
    print(result["conclusion"])
    for path in filter(None, (json, plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if json is not None:
        json.write_text(jsonlib.dumps(result, indent=1) + "\n")
    if plot is not None:
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        suite.plot(result, axes)
        figure.savefig(plot, dpi=120)


def main() -> None:
    """Runs the suite named on the command line."""
    commands = {name: command(suite) for name, suite in SUITES.items()}
    guarded(lambda prog: tyro.extras.subcommand_cli_from_dict(commands, prog=prog), lambda job: job())


if __name__ == "__main__":
    main()
