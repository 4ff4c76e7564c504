"""Reads the arrays of a table, and nothing that could run."""

import os
import zipfile
import zlib
from collections.abc import Iterable

import numpy as np

from gaea_jax.errors import UsageError


def read_arrays(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads some arrays of a table.

    Args:
      path: the ``.npz`` file.
      names: the arrays; those that it lacks are left out.

    Returns:
      The arrays by name.

    Raises:
      UsageError: on ``table``, if the file cannot be read or is not an npz of plain arrays.
    """
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            return {name: archive[name] for name in names if name in archive.files}
    except OSError as error:
        raise UsageError("table", f"cannot read {path} ({error.strerror or error})") from error
    except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError("table", f"{path} is damaged or not an .npz file of plain arrays") from error
