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

from experiments.cli import fail
from experiments.suites import convergence, kills, supernet
from gaea_jax.errors import UsageError

# A suite is a module with a dataclass ``Config``, ``run(config) -> dict`` (JSON) and ``plot(result, path)``.
SUITES = {
    "convergence": convergence,
    "kills": kills,
    "supernet": supernet,
}


def command(suite: ModuleType) -> Callable[..., None]:
    """The subcommand of a suite: its configuration's fields are flags, beside ``--json`` and ``--plot``.

    Args:
      suite: a module of ``experiments.suites``.

    Returns:
      A function that runs the suite, prints its conclusion and writes the files asked for.
    """

    def run(config: Any, json: Path | None = None, plot: Path | None = None) -> None:
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
            suite.plot(result, plot)

    run.__doc__ = suite.__doc__
    run.__annotations__["config"] = Annotated[suite.Config, tyro.conf.arg(name="")]
    return run


def main() -> None:
    """Runs the suite named on the command line; a wrong flag ends with status 2 and one line."""
    try:
        tyro.extras.subcommand_cli_from_dict({name: command(suite) for name, suite in SUITES.items()})
    except UsageError as error:
        fail(2, f"--{error.argument.replace('_', '-')}: {error.sentence}")


if __name__ == "__main__":
    main()
