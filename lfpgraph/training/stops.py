"""What ends a run early (a signal, a figure that no longer improves), and how a run ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Asked", "Best", "Outcome", "until_asked"]


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


@dataclass
class Best:
    """The best value of a figure so far, and for how many evaluations there was no better one.

    Attributes:
        name: the figure. greater: whether more is better; a name with "loss" or "error" says no.
        margin: by how much a value must be better to count.
    """

    name: str
    greater: bool | None = None
    margin: float = 0.0
    value: float | None = None
    step: int = 0
    waited: int = 0

    def __post_init__(self) -> None:
        if self.greater is None:
            self.greater = not any(word in self.name for word in ("loss", "error", "perplexity"))

    def see(self, value: float, step: int) -> bool:
        """Take the value of an evaluation; whether it is the best so far."""
        gain = 0.0 if self.value is None else (value - self.value) * (1 if self.greater else -1)
        if self.value is None or gain > self.margin:
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        steps, epochs: done in all, also before a resumption. seconds: of this call.
        reason: "finished", or "no better ..." when it stopped early.
        metrics: of the last evaluation. best, best_step: of the figure that is watched.
        checkpoint: the newest one.
    """

    steps: int
    epochs: int
    seconds: float
    reason: str
    metrics: dict[str, float]
    best: float | None
    best_step: int
    checkpoint: Path | None
