"""Keeps what torch says while it traces from the user: in the thread that traces, and in no other."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["quiet"]

_local = threading.local()
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]
_quiet_threads = 0
_TALKERS = ("torch.export", "torch.fx", "torch.onnx", "torch._export", "torch._subclasses")


def _is_quiet() -> bool:
    return getattr(_local, "depth", 0) > 0


class _Stderr:
    """The process's stderr without what quiet threads write to it."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def write(self, text: str) -> int:
        return len(text) if _is_quiet() else self.real.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class _OfQuietThreads(logging.Filter):
    """Matches any warning of a quiet thread; keeps its log lines about tracing from the handlers, and no others."""

    def match(self, text: str) -> bool:
        return _is_quiet()

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_is_quiet() and record.name.startswith(_TALKERS)) or record.levelno >= logging.CRITICAL


_theirs = _OfQuietThreads()
_IGNORED: Any = ("ignore", _theirs, Warning, None, 0)


def _with_handlers() -> list[str]:
    known = logging.root.manager.loggerDict
    return [
        name for name, logger in list(known.items()) if name.startswith("torch") and getattr(logger, "handlers", None)
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings, torch's log lines about tracing and what is written to stderr, in this thread alone."""
    global _quiet_threads
    with _lock:
        _quiet_threads += 1
        if not warnings.filters or warnings.filters[0] is not _IGNORED:  # others may have put theirs in front
            warnings.filters.insert(0, _IGNORED)  # type: ignore[attr-defined]
        if not isinstance(sys.stderr, _Stderr):
            sys.stderr = _Stderr(sys.stderr)  # type: ignore[assignment]
        for logger in [logging.root, *(logging.getLogger(name) for name in _with_handlers())]:
            for handler in [*logger.handlers, logging.lastResort]:
                handler.addFilter(_theirs)  # type: ignore[union-attr]
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        yield
    finally:
        _local.depth -= 1
        with _lock:
            _quiet_threads -= 1
            if not _quiet_threads and isinstance(sys.stderr, _Stderr):
                sys.stderr = sys.stderr.real
