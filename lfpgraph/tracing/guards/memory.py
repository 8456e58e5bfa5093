"""Memory that is written to without a change of any object: arrays of numpy's and Python's, numbers of ctypes and the like."""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import Any

import numpy as np

__all__ = ["MEMORY", "bytes_of", "is_readable"]

_LARGEST = 1 << 16  # bytes
_NUMBER: type = ctypes.c_int.__mro__[1]  # of which all numbers of ctypes are
_POINTERS = (ctypes._Pointer, ctypes._CFuncPtr)  # type: ignore[attr-defined]
MEMORY = (
    *_POINTERS,
    np.ndarray,
    bytearray,
    memoryview,
    array.array,
    mmap.mmap,
    ctypes.Array,
    ctypes.Structure,
    ctypes.Union,
    _NUMBER,
)


def is_readable(value: Any) -> bool:
    """Whether what lies in some memory says all, and soon: it holds no pointers and is not large."""
    if isinstance(value, np.ndarray):
        return value.nbytes <= _LARGEST and not value.dtype.hasobject
    if isinstance(value, _POINTERS) or getattr(value, "_objects", None):
        return False
    with memoryview(value) as seen:
        return seen.nbytes <= _LARGEST


def bytes_of(value: Any) -> tuple[Any, ...]:
    """What lies in the memory of one of these, its sizes and its type.

    It is looked at anew each time, since what is looked at all the while (`memoryview`) cannot grow.
    """
    if isinstance(value, np.ndarray):
        return value.tobytes(), value.shape, str(value.dtype)
    with memoryview(value) as seen:
        return seen.tobytes(), seen.shape, seen.format
