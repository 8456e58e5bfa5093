"""Bounds on what a file from anywhere may take while a model is built from it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ..errors import TargetError, first_line, one_line

__all__ = ["limited", "told"]

SECONDS = 10  # of processor time; the largest models of transformers take two without weights
_MORE = 512 * 2**20  # bytes beyond those in use; they take a tenth


class _OutOfTime(BaseException):
    """Not an Exception, so that nothing on the way takes it for a failure of its own."""


@contextlib.contextmanager
def limited(name: str, seconds: float = SECONDS, more: int = _MORE) -> Iterator[None]:
    """Stop what takes more processor time or memory; time in the main thread, memory where the system is Linux.

    Raises:
        TargetError: it took more time. What asks for too much memory gets a MemoryError or an error of torch's allocator.
    """
    with _memory(more), _time(name, seconds):
        yield


@contextlib.contextmanager
def _time(name: str, seconds: float) -> Iterator[None]:
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not timed or signal.getitimer(signal.ITIMER_PROF)[0]:  # none to have, or one that runs already
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    except _OutOfTime:
        raise TargetError(
            f"{name} takes more than {seconds:.0f} s to build: its sizes are absurd, or no model's"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _memory(more: int) -> Iterator[None]:
    try:
        import resource

        used = Path("/proc/self/statm").read_text().split()[5]  # pages of data and stack
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = int(used) * resource.getpagesize() + more
    if any(limit != resource.RLIM_INFINITY and limit < bound for limit in (soft, hard)):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def told(error: Exception) -> str:
    """An error of somebody else's code in a message of ours."""
    line = first_line(error) or ("it asks for too much" if isinstance(error, MemoryError) else "")
    line = one_line(error, 300) if line.endswith(":") else line  # what is wrong stands below
    return f"{type(error).__name__}: {line}"
