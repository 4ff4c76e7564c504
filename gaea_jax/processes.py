"""Several processes, on one machine or many, that run one program together (JAX's own distributed runtime).

Every process runs the same script with the same arguments. Each has all of the data and the whole state; of a batch its
devices compute their share. The first process writes, and all read the same file system.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from gaea_jax.errors import UsageError

Result = TypeVar("Result")

# How messages of JAX begin where a connection broke.
_BROKEN = ("INTERNAL", "UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")


class LostProcessError(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on; the message says what to do."""


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes; to be called before anything else of JAX.

    Without arguments JAX asks the cluster: Slurm, Open MPI, Kubernetes or a Cloud TPU.

    Args:
      coordinator: ``host:port`` that process 0 listens on and all others can reach.
      processes: how many there are.
      process: number of this one, from 0.

    Raises:
      UsageError: on ``coordinator``, if only some of the three are given or the cluster is none that JAX knows; on
        ``process``, if there are not as many; on ``coordinator``, if the others cannot be reached.
    """
    given = (coordinator, processes, process)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise UsageError("coordinator", "needs --processes and --process beside it, and they need it")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UsageError("process", f"must be in 0..{processes - 1}, not {process}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise UsageError("coordinator", f"the processes could not be joined: {_reason(error)}") from error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def put(tree: Any, sharding: Sharding | None) -> Any:
    """`jax.device_put`, also to devices of other processes, which call it with the same values.

    Args:
      tree: arrays, with typed random keys, or numbers; each process has them whole.
      sharding: of every one of them.

    Returns:
      The tree on these devices.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def spread(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(spread(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda place: values[place])

    return jax.tree.map(spread, tree)


def agreed(*numbers: int) -> list[tuple[int, ...]]:
    """The numbers of all processes, which call this at the same place.

    Args:
      *numbers: those of this process.

    Returns:
      A tuple for each process, the first's first.
    """
    if jax.process_count() == 1:
        return [numbers]
    return [tuple(row) for row in multihost_utils.process_allgather(np.array(numbers, np.int32)).tolist()]


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Raises `LostProcessError` where a program fails that several processes run.

    On CPU a program fails at once when another process ends. On GPU and TPU it may wait for ever; there JAX's runtime
    ends a process that has not heard of another for 100 seconds, and says so.
    """
    try:
        yield
    # A value that did not arrive is a ValueError where it is read.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not str(error).startswith(_BROKEN):
            raise
        remedy = "start all processes again with --resume"
        raise LostProcessError(f"another process of the run has ended; {remedy} ({_reason(error)})") from error


def first(act: Callable[[], Result]) -> Result | None:
    """Has the first process do something that the others wait for.

    Args:
      act: what it does.

    Returns:
      What that returned; None in the other processes.

    Raises:
      UsageError: what ``act`` raised, in the first process; in the others that it could not be done.
    """
    result, failure = None, None
    if is_first():
        try:
            result = act()
        except UsageError as error:
            failure = error
    failed = agreed(int(failure is not None))[0][0]
    if failure:
        raise failure
    if failed:
        raise UsageError("process", "0 could not go on; it says why")
    return result


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
