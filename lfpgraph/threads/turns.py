"""Threads that run a wrapped model and threads that trace take turns.

torch.export and make_fx change torch's classes and flags for all threads, so that one thread traces at a time. Tracing a model
also puts other tensors in the place of its parameters and buffers, so that nobody may be in the midst of a run of it meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Iterator

from torch import nn

from ..errors import TraceError

__all__ = ["LOCK", "alone", "another_thread_traces", "begin_run", "end_run", "one_at_a_time", "wait_for_traces"]

log = logging.getLogger("lfpgraph")
LOCK = threading.RLock()  # held by the thread that traces
_cut_off = False  # whether this process was forked in the middle of another thread's trace
_runs: dict[int, list[nn.Module]] = {}  # by thread: the wrapped models that it runs, one inside the other
_waiting: dict[int, int] = {}  # threads that wait for the lock, and touch nothing until they have it
_LONGEST = 300.0  # seconds that a run is waited for
_STANDS = 2.0  # seconds at one place, after which a thread is taken to wait for something else: this thread, perhaps


def _after_fork() -> None:
    """Free the lock of a thread that the new process does not have."""
    global _cut_off
    _cut_off = _cut_off or not LOCK.acquire(blocking=False)
    LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    for others in (_runs, _waiting):
        for thread in [thread for thread in others if thread != threading.get_ident()]:
            del others[thread]  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock. A run that waits for it does nothing until then, so that whoever traces need not wait for that run.

    No garbage is collected meanwhile: a generator that stopped within `torch.no_grad()` would be closed, and what closes it
    be noted in the trace.
    """
    if not LOCK.acquire(blocking=False):
        this = threading.get_ident()
        _waiting[this] = _waiting.get(this, 0) + 1
        try:
            LOCK.acquire()
        finally:  # with the lock held: nobody traces
            _waiting[this] -= 1
            if not _waiting[this]:
                del _waiting[this]
    collects = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if collects:
            gc.enable()
        LOCK.release()


def wait_for_traces() -> None:
    """Wait until no other thread traces a model.

    Raises:
        TraceError: none ever ends, since this process has been forked off in the middle of one.
    """
    if _cut_off:
        raise TraceError(
            "this process was forked while a thread of the other one traced a model, so torch is still in the midst of it here. "
            "Fork before the first call of the model, or after it, or start the process by spawn or forkserver."
        )
    if LOCK.acquire(blocking=False):
        LOCK.release()
    else:
        with one_at_a_time():
            pass


def another_thread_traces() -> bool:
    """Whether what torch's global flags say of tracing and exporting is the business of another thread."""
    if _cut_off:
        wait_for_traces()
    if not LOCK.acquire(blocking=False):
        return True
    LOCK.release()
    return False


def begin_run(model: nn.Module) -> None:
    """Say that this thread runs a wrapped model, as soon as no other one traces; `end_run` is to follow in any case."""
    this = threading.get_ident()
    runs = _runs.get(this)  # no other thread writes there
    if runs is None:
        _runs[this] = [model]
    else:
        runs.append(model)
    try:
        wait_for_traces()
    except BaseException:
        end_run()
        raise


def end_run() -> None:
    """Say that the last run that this thread has begun is over."""
    this = threading.get_ident()
    runs = _runs[this]
    runs.pop()
    if not runs:
        del _runs[this]


@contextlib.contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Hold the lock, with no other thread in the midst of a run of a wrapped model that shares a module with this one.

    A run goes on to its end, or to where it waits for the lock. One that does not move is not waited for: its thread may wait
    for what this one is about to do, as a forward that calls its parts in other threads does.
    """
    with one_at_a_time():
        modules, since = None, time.monotonic()
        seen: dict[int, tuple[types.FrameType, int, float]] = {}
        while len(_runs) > (threading.get_ident() in _runs):
            modules = set(model.modules()) if modules is None else modules
            if not _moving(modules, seen):
                break
            if time.monotonic() - since > _LONGEST:
                log.warning(
                    "%s is traced in the midst of another thread's call of it, which has lasted more than %d seconds; that call "
                    "may meet tensors without data.",
                    type(model).__name__, _LONGEST,
                )  # fmt: skip
                break
            time.sleep(1e-3)
        seen.clear()
        yield


def _moving(modules: set[nn.Module], seen: dict[int, tuple[types.FrameType, int, float]]) -> bool:
    """Whether another thread runs one of the modules, and neither waits for the lock nor stands still.

    Args:
        seen: by thread, the frame and the place in it where it was when it was looked at, and since when.
    """
    frames, now, moving = sys._current_frames(), time.monotonic(), False
    for thread, runs in list(_runs.items()):
        frame = frames.get(thread)
        if thread == threading.get_ident() or thread in _waiting or frame is None:
            continue
        if not any(part in modules for run in list(runs) for part in run.modules()):
            continue
        before = seen.get(thread)
        if before is None or before[0] is not frame or before[1] != frame.f_lasti:
            before = seen[thread] = frame, frame.f_lasti, now
        moving = moving or now - before[2] < _STANDS
    return moving
