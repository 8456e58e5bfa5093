"""How much resident memory a call needs beyond what is there before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["peak_growth", "resident"]


def peak_growth(run: Callable[[], Any]) -> int:
    """The peak of resident memory during a call over what is resident before it, bytes. Linux with the GNU C library.

    Free memory is given back to the system before, so that what is resident is in use.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(key: str = "VmRSS") -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
