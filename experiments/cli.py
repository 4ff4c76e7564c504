"""What every script does around the library: flags to a configuration, errors to one line and an exit status."""

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from gaea_jax.errors import UsageError
from gaea_jax.train import DivergedError, Interrupted

Config = TypeVar("Config")


def main(run: Callable[[Config], None], config: type[Config], description: str) -> None:
    """Parses the flags, runs, and exits.

    The exit status is 0 after a finished run, 1 after a diverged one, 2 for a wrong flag and 128 plus the number of the
    signal for a run that a signal ended.

    Args:
      run: what the script does.
      config: the dataclass whose fields are the flags.
      description: printed by ``--help``.
    """
    try:
        run(tyro.cli(config, description=description, config=(tyro.conf.OmitSubcommandPrefixes,)))
    except UsageError as error:
        fail(2, f"--{error.argument.replace('_', '-')}: {error.sentence}")
    except DivergedError as error:
        fail(1, str(error))
    except Interrupted as stop:
        name = signal.Signals(stop.signal).name
        fail(128 + stop.signal, f"{name} at step {stop.step}: the state is saved, continue with --resume")


def fail(status: int, sentence: str) -> None:
    """Prints one line on standard error and exits."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(status)
