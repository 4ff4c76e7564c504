"""The folder of one run: what is in it, who may write to it, and what a resumed run finds there."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, Self

from gaea_jax import processes
from gaea_jax.checkpoint import CheckpointError, Checkpoints, differences
from gaea_jax.errors import UsageError
from gaea_jax.metrics import MetricsLog


class Log(Protocol):
    """Where the reports of a run go; see `MetricsLog`."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one report."""

    def rewind(self, step: int) -> None:
        """Drops what was reported after a step."""

    def records(self) -> list[dict[str, Any]]:
        """The reports written so far."""


class _OtherLog(MetricsLog):
    """The log of a run whose first process writes it, to the other processes."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Leaves it to the first process."""

    def rewind(self, step: int) -> None:
        """Leaves it to the first process."""


class RunFolder:
    """An output folder with ``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``plots/`` and ``result.json``.

    ``result.json`` exists only when the run has finished, ``tensorboard/`` only where it was asked for.

    Attributes:
      path: the folder.
      log: its metrics.
    """

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any], tensorboard: bool = False):
        self.path = path
        metrics = path / "metrics.jsonl"
        self.log: Log = _OtherLog(metrics)
        if processes.is_first():
            self.log = MetricsLog(metrics, path / "tensorboard" if tensorboard else None)
        self._identity = identity

    @classmethod
    def create(
        cls,
        out: str | os.PathLike[str],
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        tensorboard: bool = False,
    ) -> Self:
        """Takes a new or empty folder for a new run.

        Args:
          out: the folder; made if absent.
          config: everything to write into ``config.json``.
          identity: the fields that decide the numbers of the run, by flag; a resumed run must have the same.
          tensorboard: whether its reports are also written for TensorBoard.

        Returns:
          The folder, with ``config.json`` in it.

        Raises:
          UsageError: on ``out``, if the folder holds anything, lies below a file or cannot be written to; on
            ``tensorboard``, if the package for it is missing.
        """
        path = pathlib.Path(out)
        folder = cls(path, identity, tensorboard)
        try:
            # What a kill before the first rename left behind is no run.
            if path.is_dir() and any(file.name != "config.json.tmp" for file in path.iterdir()):
                held = "another run" if (path / "config.json").exists() else "other files"
                raise UsageError("out", f"{path} holds {held}; name a new folder, or continue a run with --resume")
            path.mkdir(parents=True, exist_ok=True)
            folder.write_json("config.json", {**config, "identity": identity})
        except OSError as error:
            raise UsageError("out", f"{path} cannot be made or written to ({error.strerror}); name another") from error
        return folder

    @classmethod
    def reopen(cls, out: str | os.PathLike[str], identity: Mapping[str, Any], tensorboard: bool = False) -> Self:
        """Takes the folder of a run that was cut short.

        Args:
          out: the folder.
          identity: as for `create`.
          tensorboard: as for `create`; need not be as it was before.

        Returns:
          The folder.

        Raises:
          CheckpointError: there is no run in the folder, or one of another configuration.
          UsageError: on ``tensorboard``, if the package for it is missing.
        """
        path = pathlib.Path(out)
        try:
            then = json.loads((path / "config.json").read_text())["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"there is no run to continue in {path}; leave out --resume to start one") from error
        if changed := differences(then, json.loads(json.dumps(dict(identity)))):
            raise CheckpointError(f"{path} holds a run of another configuration: {'; '.join(changed)}")
        return cls(path, identity, tensorboard)

    def checkpoints(self) -> Checkpoints:
        """Opens the checkpoints of the run; a context manager."""
        return Checkpoints(self.path / "checkpoints", self._identity)

    def records(self) -> list[dict[str, Any]]:
        """The reports written so far."""
        return self.log.records()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a file of the folder in one atomic replacement.

        Args:
          name: ``config.json`` or ``result.json``.
          value: JSON values by name.
        """
        temporary = self.path / f"{name}.tmp"
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(temporary.unlink, missing_ok=True)
            temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
            os.replace(temporary, self.path / name)
