"""A run that is asked to stop by a signal, and stops after a whole step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Asked", "until_asked"]


class Asked:
    """Whether somebody has asked the run to stop: the signal's number, 0 for nobody."""

    signal = 0


@contextmanager
def until_asked(asked: Asked) -> Iterator[None]:
    """Note the first Ctrl-C or SIGTERM in `asked`; the second Ctrl-C interrupts at once. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if asked.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.signal = number

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
