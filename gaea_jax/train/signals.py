"""Stopping a run between two steps when the user or the cluster asks, so that it can save its state."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether a signal asked the run to stop, for the loop to read between steps.

    Attributes:
      signal: number of the last signal that came; 0 if none did.
    """

    signal: int = 0

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Notes SIGINT and SIGTERM instead of ending the process, until the context is left.

    An interrupt (SIGINT) after a first signal raises ``KeyboardInterrupt`` at once, for a user who will not
    wait for the end of a step. Outside the main thread, where Python allows no handlers, the signals keep
    their meaning and nothing is noted.

    Yields:
      The record that the signals are noted in.

    Example:
      >>> with stop_on_signal() as stop:
      ...     signal.raise_signal(signal.SIGTERM)
      ...     print(stop.requested, signal.Signals(stop.signal).name)
      True SIGTERM
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None stands for a handler that C code installed, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
