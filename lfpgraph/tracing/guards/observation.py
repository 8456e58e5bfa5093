"""Is a traced program still the model? What one run of the model read, to be looked at again before each later call.

    with Observation(model) as seen:
        result = model(*args)          # the model's own forward, for real
    seen.why_live                      # what this run did that a program cannot keep; None if nothing
    seen.guard.changed()               # at each later call: what the program depends on and has changed; None if nothing

What is watched: the attributes, submodules, hooks, mode and class of each module, and what is inside those attributes
that code of the run names; and for each function of the user's that ran (the model's, or any library's but torch and
Python's own) its code, defaults and closure, the globals and builtins it names, and what it names of Python modules and
classes. Torch's own code is trusted.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LiveOnlyError, one_line
from ..flat import hide_from_compile, is_tracing
from .called import Called
from .reasons import SETTINGS, State, reasons_to_be_live, settings, writes
from .snapshots import Snapshot
from .suspects import NUMBERS, Suspects

__all__ = ["Guard", "Observation", "is_observed_elsewhere"]

_running: dict[int, Observation] = {}  # by thread


def is_observed_elsewhere(module: nn.Module) -> bool:
    """Whether another thread observes a run of a model that this module is part of; the observation is told."""
    for thread, seen in list(_running.items()):
        if thread != threading.get_ident() and any(part is module for part in seen.model.modules()):
            seen.in_threads = True
            return True
    return False


class Guard:
    """Says whether anything that an observed run depended on has changed since."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def changed(self) -> str | None:
        """None if nothing has changed, else what: the path in the model or the file and name, and how."""
        if self._snapshot.unchanged():
            return None
        found = self._snapshot.differences()
        if not found:
            return None
        words = [f"{name} {how}" for name, how in found[:3]]
        return ", ".join(words) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


class Observation:
    """Watches one run of a model in this thread, which is several times slower for it in what Python does.

    Entering it raises LiveOnlyError where an object that the model holds cannot be looked at.

    The run may be recorded by the live engine. Tracing belongs before or after it: it is no run, and makes millions of calls.

    Changes nothing of the run, which may be a step of training. A model that prepares itself at its first call (fills a
    cache, warns once) is live in this observation and need not be in the next one: `may_settle`.

    Args:
        hooks_are_outside: it is the model's forward that runs, so that hooks on the model itself are no part of the run.
        allows_shortcut: whether a `shortcut` is no reason to be live.

    Attributes:
        guard: to look at before later calls; None after a run that raised, and where the model has to be live.
        why_live: what a static program would lose of this run, with the line of the user's code; None if nothing.
        may_settle: whether all that was found is of a kind that can happen once, so that another run is worth observing.
        shortcut: says that the model asks whether it is being traced and then may branch on data (`Suspects.shortcut`); None
            if that is not so.
        asked: where user's code asked whether it is being traced, if it did: the program has to be compared with
            the model in that case, gradients included.
        asks_layout: whether user's code asked how a tensor lies in memory, so that a program is for one layout of all.
        runs_again: where a checkpoint begins that runs a part of the model again in the backward pass (`Suspects`).
        drawn, written, returned: the state in which the run left the CPU's random generator, the buffers and inputs that it
            wrote to, and those that share their memory with an output, where it is a trial (`try_out`).
    """

    def __init__(self, model: nn.Module, hooks_are_outside: bool = False, allows_shortcut: bool = False) -> None:
        self.model, self.hooks_are_outside, self.allows_shortcut = model, hooks_are_outside, allows_shortcut
        self.guard: Guard | None = None
        self.why_live: str | None = None
        self.may_settle = False
        self.shortcut: str | None = None
        self.asked: str | None = None
        self.runs_again: str | None = None
        self.asks_layout = False
        self.drawn: torch.Tensor | None = None
        self.written: set[str] = set()
        self.returned: set[str] = set()
        self.in_threads = False  # whether other threads have called parts of the model meanwhile

    def __enter__(self) -> Observation:
        self._suspects = Suspects()
        try:
            self._snapshot = Snapshot(self.model, not self.hooks_are_outside)
            self._state = State(self.model)
        except Exception as error:  # of an object's own method
            raise LiveOnlyError(_unreadable(error)) from error
        self._called = Called(self._snapshot, self._suspects)
        self._before: Any = sys.getprofile()
        self._failed: Exception | None = None
        self._values_seen = values_seen()
        self._values_seen.__enter__()
        if self._before is None or callable(self._before):
            sys.setprofile(self._event)
        else:
            self._suspects.always("another profiler is running, so that the run cannot be observed")
        self._outer = _running.get(threading.get_ident())
        _running[threading.get_ident()] = self
        return self

    def _event(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if self._before is not None:
            self._before(frame, event, argument)
        if is_tracing():  # a wrapped module inside is being traced, which is no run
            return
        try:
            if event == "call":
                self._called.python(frame)
            elif event == "return":
                self._suspects.returned(frame, argument)
                self._called.returned(frame)
            elif event == "c_call":
                self._suspects.builtin(frame, argument)
        except Exception as error:  # raised here, it would come out of the model
            self._failed = self._failed or error

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if sys.getprofile() == self._event:
                sys.setprofile(self._before)
            elif self._before is None or callable(self._before):
                self._suspects.always("sets a profile function, so that the run cannot be observed")
        finally:
            self._values_seen.__exit__(None, None, None)
            _running.pop(threading.get_ident())
            if self._outer is not None:
                _running[threading.get_ident()] = self._outer
        if self.in_threads:
            self._suspects.always("parts of it are called in other threads")
        if kind is None:
            try:
                self._judge()
            except Exception as failed:
                self.guard, self.why_live, self.may_settle = None, _unreadable(failed), False
        del self._snapshot, self._state, self._called, self._suspects

    def _judge(self) -> None:
        snapshot, suspects, called = self._snapshot, self._suspects, self._called
        if self._failed is not None:
            suspects.always(f"observing the run failed: {type(self._failed).__name__}: {self._failed}")
        called.close()
        snapshot.keep_named(called.names)
        self.asked, self.shortcut, self.runs_again = suspects.question, suspects.shortcut, suspects.runs_again
        self.asks_layout = suspects.asks_layout
        for reason in reasons_to_be_live(self._state, snapshot, called.codes, self.hooks_are_outside):
            suspects.always(reason)
        if self.shortcut is not None and not self.allows_shortcut:
            suspects.always(self.shortcut)
        for reason in writes(snapshot, called.codes):
            suspects.once(reason)
        reasons = suspects.reasons
        self.may_settle = bool(reasons) and all(once for _, once in reasons)
        self.why_live = next((words for words, once in sorted(reasons, key=lambda reason: reason[1])), None)
        if self.why_live is not None:
            return snapshot.let_go()
        loggers = list(suspects.loggers)
        if loggers:
            snapshot.add_reading(
                lambda: [log.getEffectiveLevel() for log in loggers], lambda i: f"the level of {loggers[i]}"
            )
        snapshot.add_reading(settings, lambda i: SETTINGS[i])
        snapshot.take_again()
        self.guard = Guard(snapshot)


hide_from_compile(Observation._event)  # which is no code of a compiled part that it watches


def _unreadable(error: Exception) -> str:
    return f"something that it holds cannot be looked at ({type(error).__name__}: {one_line(error)})"


_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def values_seen() -> Iterator[None]:
    """Let a profile function see where `if tensor:`, `int(tensor)` and the like make a Python value out of a tensor's.

    And where a parameter is frozen.

    Python tells a profile function of no such step, so the methods behind them are functions of Python's meanwhile.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            for name in NUMBERS:
                setattr(Tensor, name, _seen(getattr(torch._C.TensorBase, name)))
            setattr(Tensor, "requires_grad", property(_TRAINS.__get__, seen_freeze))  # noqa: B010
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for name in (*NUMBERS, "requires_grad"):
                    delattr(Tensor, name)


_TRAINS: Any = torch._C.TensorBase.requires_grad


def seen_freeze(tensor: Tensor, trains: bool) -> None:
    """What `tensor.requires_grad = ...` does while a run is observed."""
    _TRAINS.__set__(tensor, trains)


def _seen(method: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def seen_read(tensor: Tensor) -> Any:
        return method(tensor)

    return seen_read
