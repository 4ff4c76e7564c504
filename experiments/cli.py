"""What every script does around the library: flags to a configuration, errors to one line and an exit status."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, TypeVar

import absl.logging
import jax
import platformdirs
import tyro

from gaea_jax.errors import UsageError
from gaea_jax.processes import LostProcessError, connect
from gaea_jax.train import DivergedError, Interrupted

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Whether the script is one of several processes that make one run; see `gaea_jax.processes.connect`.

    Attributes:
      distributed: join the other processes that a cluster has started: Slurm, Open MPI, Kubernetes or a Cloud TPU.
      coordinator: join them without a cluster: the same HOST:PORT for all, where process 0 listens.
      processes: how many there are, with `coordinator`.
      process: number of this one, from 0, with `coordinator`.
    """

    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def join(self) -> None:
        """Joins the other processes, if there are to be any.

        Raises:
          UsageError: on a flag of these.
        """
        named = (self.coordinator, self.processes, self.process)
        if self.distributed or named != (None, None, None):
            connect(*named)
            sys.excepthook = _end_at_once


def main(run: Callable[[Config], None], config: type[Config], description: str) -> None:
    """Makes a configuration of the flags, runs, and exits; see `guarded`.

    Args:
      run: what the script does.
      config: the dataclass whose fields are the flags.
      description: printed by ``--help``.
    """
    keep_programs()
    guarded(lambda prog: tyro.cli(config, prog=prog, description=description), run)


def keep_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, for the next process that needs the same program.

    The variables of JAX go before: ``JAX_COMPILATION_CACHE_DIR`` names another folder, and
    ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("gaea_jax") / "programs"))


def guarded(read: Callable[[str], Config], run: Callable[[Config], None]) -> None:
    """Reads the flags, runs, and exits; every error of use is one line.

    The exit status is 0 after a finished run, 1 after a diverged one or where another process of the run ended, 2 for a
    wrong flag and 128 plus the number of the signal for a run that a signal ended.

    Args:
      read: makes of the flags, by tyro, what ``run`` takes; called with the name of the program.
      run: what the script does.
    """
    # Libraries remark on what no user can change, such as the decoder of images; their errors still show.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        run(_one_line(read))
    except UsageError as error:
        fail(2, f"--{error.argument.replace('_', '-')}: {error.sentence}")
    except DivergedError as error:
        fail(1, str(error))
    except LostProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(1)
    except Interrupted as stop:
        name = signal.Signals(stop.signal).name
        fail(128 + stop.signal, f"{name} at step {stop.step}: the state is saved, continue with --resume")
    except KeyboardInterrupt:
        fail(128 + signal.SIGINT, "SIGINT: stopped at once, without saving")


def _one_line(read: Callable[[str], Config]) -> Config:
    """Reads the flags; tyro's box around a wrong one becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return read(f"python -m experiments.{pathlib.Path(sys.argv[0]).stem}")
    except SystemExit as stop:
        if stop.code:
            fail(2, f"{_first_paragraph(said.getvalue())} (all flags: --help)")
        raise


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What one of several processes does with an error that nothing expects."""
    sys.__excepthook__(kind, error, trace)
    _leave(1)


def _leave(status: int) -> NoReturn:
    """Ends one of several processes at once: an orderly end would wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fail(status: int, sentence: str) -> NoReturn:
    """Prints one line on standard error and exits."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(status)


def _first_paragraph(box: str) -> str:
    """What a box of tyro's says between its title and the next rule or empty line."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()
    words: list[str] = []
    for line in (line.strip("│| ") for line in lines):
        if not set(line) <= set("─-"):
            words += line.split()
        # A stream that cannot show a box has a rule under the title too.
        elif words:
            break
    return " ".join(words).removeprefix("Error parsing ")
