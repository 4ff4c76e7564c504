"""Checkpoints that are complete, checked, and refused when they are not this run's.

Orbax writes a step to a temporary folder and renames it when it is complete, so a killed process leaves no
half-written checkpoint under a step's name. It does not notice a flipped bit in an array, nor a checkpoint
that was written with another configuration. For that a SHA-256 digest of every leaf and the identity of the
run go into the same step.

A step holds two items: ``manifest``, which is JSON, and ``leaves``, all values one after the other in an
array of bytes. One array, because where Orbax reads many and one is damaged, each may print its own
traceback.
"""

import contextlib
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gaea_jax import processes
from gaea_jax.errors import UsageError

Tree = TypeVar("Tree")


class CheckpointError(UsageError):
    """A run cannot be resumed: there is no checkpoint, it is of another run, or it is damaged.

    ``argument`` is ``"resume"``.
    """

    def __init__(self, sentence: str):
        super().__init__("resume", sentence)


class Checkpoints:
    """The checkpoints of one run in one folder, a sub-folder a step.

    A context manager: leaving it waits until every save is complete. It is for one thread, and nothing else may write
    to the folder meanwhile. Of several processes that make one run the first saves, and all restore. What a killed
    process left unfinished is removed.

    A tree is any pytree whose leaves are JAX arrays (with typed PRNG keys), NumPy arrays or Python numbers.
    Only leaves are stored: structure, static fields and empty states come from ``like`` of :meth:`restore`.

    Args:
      folder: a local folder; made if absent.
      identity: what has to be the same when the run is resumed, as JSON values by name: fields of the
        configuration, the space, versions. Errors print the names as given here.
      keep: how many of the newest checkpoints stay, at least 1.

    Raises:
      UsageError: ``out`` if the folder cannot be made or written to; ``keep`` if it is below 1.
      TypeError: a value of ``identity`` is not JSON.

    Example:
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder, {"--channels": 16}) as checkpoints:
      ...         checkpoints.save(10, {"w": jnp.arange(3.0)})
      ...     with Checkpoints(folder, {"--channels": 16}) as checkpoints:
      ...         step, tree = checkpoints.restore({"w": jnp.zeros(3)})
      >>> step, tree["w"].tolist()
      (10, [0.0, 1.0, 2.0])
    """

    def __init__(self, folder: str | pathlib.Path, identity: Mapping[str, Any], keep: int = 3):
        if keep < 1:
            raise UsageError("keep", f"must be at least 1, got {keep}")
        self._folder = pathlib.Path(folder).absolute()
        # In the form it comes back from a file in, where a tuple is a list.
        self._identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            reason = f"{self._folder} cannot be written to ({error.strerror}); name a folder that can"
            raise UsageError("out", reason) from error
        own = jax.process_index()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=processes.is_first(),
                # Each process by itself: one that is lost must not leave others waiting inside a save.
                multiprocessing_options=ocp.options.MultiprocessingOptions(own, {own}, f"process {own}"),
                # Otherwise opening reads every step's times and logs an error where they are damaged.
                lightweight_initialize=True,
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first, after waiting for a save under way."""
        self.wait()
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, *, wait: bool = False) -> None:
        """Saves a tree in the background.

        The values are copied before this returns, so the caller may donate or overwrite the arrays at once.
        One save is under way at a time: a second call waits for the first.

        Args:
          step: number of completed updates; greater than that of every checkpoint in the folder.
          tree: the pytree to save.
          wait: whether to return only when the checkpoint is complete.

        Raises:
          UsageError: ``step`` if it is not greater than the newest; ``tree`` if a leaf is no array or number.
          Exception: whatever the file system raised in the save before, such as a full disk.
        """
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise UsageError("step", f"must be greater than {newest}, the newest checkpoint, got {step}")
        named = [(name, leaf, _data(name, leaf)) for name, leaf in _named_leaves(tree)]
        packed = np.zeros(max(1, sum(data.nbytes for *_, data in named)), np.uint8)  # Orbax refuses size 0.
        leaves, offset = {}, 0
        for name, leaf, data in named:
            # A copy, because NumPy's view of an array on the CPU is its buffer, which a donation gives away.
            piece = packed[offset : offset + data.nbytes]
            piece[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            array = _describe(leaf, data)
            leaves[name] = {"array": array, "offset": offset, "sha256": _digest(array, piece)}
            offset += data.nbytes
        manifest = {"step": step, "identity": self._identity, "leaves": leaves}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                manifest=ocp.args.JsonSave({**manifest, "sha256": _json_digest(manifest)}),
                leaves=ocp.args.PyTreeSave({"bytes": packed}),
            ),
            force=True,
        )
        if wait:
            self.wait()

    def restore(self, like: Tree, step: int | None = None) -> tuple[int, Tree]:
        """Reads a checkpoint, after checking that it is this run's and that its values are those saved.

        Args:
          like: a tree of the structure, shapes and dtypes that were saved; its values are not used.
          step: which checkpoint; the newest by default.

        Returns:
          The step, and the tree. A leaf is what it is in ``like``: a JAX array of the same sharding, a NumPy
          array or a Python number. That an array was weakly typed is not kept.

        Raises:
          CheckpointError: there is no such checkpoint; its identity or its leaves are not this run's, with a
            list of the differences; or it is damaged.
          UsageError: ``tree`` if a leaf of ``like`` is no array or number.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self._folder}; start a new run")
        if step is None:
            step = steps[-1]
        if step not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(f"there is no checkpoint of step {step} in {self._folder}, only of {known}")

        named = {name: (leaf, _data(name, leaf)) for name, leaf in _named_leaves(like)}
        with self._reading(step):
            items = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            manifest = dict(self._manager.restore(step, args=items).manifest)
            if manifest.pop("sha256") != _json_digest(manifest) or manifest["step"] != step:
                raise ValueError("the manifest does not match its digest, or is of another step")
        leaves = manifest["leaves"]
        self._refuse(step, differences(manifest["identity"], self._identity))
        arrays_then = {f"leaf {name}": leaves[name]["array"] for name in leaves}
        arrays_now = {f"leaf {name}": _describe(leaf, data) for name, (leaf, data) in named.items()}
        self._refuse(step, differences(arrays_then, arrays_now))

        values = {}
        with self._reading(step):
            items = ocp.args.Composite(leaves=ocp.args.PyTreeRestore({"bytes": np.zeros(0, np.uint8)}))
            packed = self._manager.restore(step, args=items).leaves["bytes"]
            for name, (_, data) in named.items():
                offset = leaves[name]["offset"]
                piece = packed[offset : offset + data.nbytes]
                if _digest(leaves[name]["array"], piece) != leaves[name]["sha256"]:
                    raise ValueError(f"leaf {name} does not match its digest")
                values[name] = piece.view(data.dtype).reshape(data.shape)
        restored = [_restored(leaf, values[name]) for name, (leaf, _) in named.items()]
        return step, jax.tree.unflatten(jax.tree.structure(like), restored)

    def wait(self) -> None:
        """Waits until the save under way is complete, and raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits like :meth:`wait`, then releases the threads of the background save."""
        self._manager.close()

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Makes one sentence of whatever Orbax, TensorStore and JSON raise for a damaged file."""
        try:
            yield
        except Exception as error:
            older = [s for s in self.steps() if s < step]
            remedy = f"to continue from step {older[-1]}" if older else "and start a new run"
            raise CheckpointError(
                f"the checkpoint {self._folder / str(step)} is damaged; remove that folder {remedy}"
            ) from error

    def _refuse(self, step: int, differences: list[str]) -> None:
        if differences:
            raise CheckpointError(
                f"the checkpoint {self._folder / str(step)} is of another run: {'; '.join(differences)}"
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the identity of a run and that of a checkpoint.

    Args:
      before: JSON values by name, as they were stored.
      now: JSON values by name, as they are.

    Returns:
      A phrase for every name whose value differs or that only one of the two has.
    """
    phrases = []
    for name in sorted({*before, *now}):
        if name not in before:
            phrases.append(f"{name} was absent, now {now[name]}")
        elif name not in now:
            phrases.append(f"{name} was {before[name]}, now absent")
        elif before[name] != now[name]:
            phrases.append(f"{name} was {before[name]}, now {now[name]}")
    return phrases


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(name: str, leaf: Any) -> jax.Array | np.ndarray:
    """Returns a leaf as the plain array that is stored for it."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic | int | float):
        data = np.asarray(leaf)
        if not data.dtype.hasobject:
            return data
    raise UsageError("tree", f"leaf {name} must be an array or a number, got {type(leaf).__name__}")


def _describe(leaf: Any, data: jax.Array | np.ndarray) -> str:
    array = f"{data.dtype}[{','.join(map(str, data.shape))}]"
    return f"{jax.random.key_impl(leaf)} key {array}" if _is_key(leaf) else array


def _restored(like: Any, values: np.ndarray) -> Any:
    """Returns stored values as the kind of leaf ``like`` is, on the devices it is on."""
    values = values.copy()  # A slice of the packed bytes may be unaligned, and would keep all of them alive.
    if isinstance(like, np.generic):
        return values[()]
    if isinstance(like, int | float):
        return type(like)(values.item())
    if isinstance(like, np.ndarray):
        return values
    # An array put on a named device is committed to it; one that was not must stay free to follow the others.
    sharding = like.sharding if like.committed else None
    if _is_key(like):
        return processes.put(jax.random.wrap_key_data(jnp.asarray(values), impl=jax.random.key_impl(like)), sharding)
    return processes.put(values, sharding)


def _digest(array: str, piece: np.ndarray) -> str:
    digest = hashlib.sha256(array.encode())
    digest.update(piece.data)
    return digest.hexdigest()


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
