"""Gives memory back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Returns to the system what has been freed, where the C library keeps it: compiling a step leaves gigabytes.

    Does nothing where the library is not glibc.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
