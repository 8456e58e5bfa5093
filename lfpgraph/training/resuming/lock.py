"""A lock on a run's folder, which the system takes back when its process ends, however it ends."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import TrainingError, printable

__all__ = ["locked"]

log = logging.getLogger("lfpgraph")
_NAME = ".lock"
_own = threading.Lock()
_held: dict[tuple[int, int], int] = {}  # files that are locked, and by which process: a fork inherits the table alone


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder.

    Raises:
        TrainingError: another run is in it, of this process or of another, or the folder cannot be made, or read again.
    """
    try:
        if "\0" in str(folder.absolute()):
            raise TrainingError(
                f"{printable(str(folder))} holds a zero, which no name of a folder may: give another folder"
            )
        str(folder.absolute()).encode()  # checkpoints are read by libraries that take names of Unicode alone
        folder.mkdir(parents=True, exist_ok=True)
        with _own:
            handle, key = _take(folder / _NAME)
    except UnicodeEncodeError as error:
        raise TrainingError(
            f"the name of the folder {printable(str(folder))} is no text, so that its checkpoints could not be read again: "
            "give another folder"
        ) from error
    except OSError as error:
        raise TrainingError(f"cannot make the folder {folder}, or its {_NAME}: {error.strerror}") from error
    try:
        yield
    finally:
        with _own:
            _held.pop(key, None)
            os.close(handle)


def _take(file: Path) -> tuple[int, tuple[int, int]]:
    if file.exists():  # not opened yet: closing it would give up the lock of a run in this very process
        known = file.stat()
        if _held.get((known.st_dev, known.st_ino)) == os.getpid():
            raise _taken(file, "of this process")
    # In a folder from elsewhere it may be a link to a file of somebody else's, which would be written over.
    handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    made = os.fstat(handle)
    if not stat.S_ISREG(made.st_mode) or made.st_nlink > 1:
        os.close(handle)
        raise TrainingError(
            f"{file} is no file of its own but a link, a pipe or a device: give another folder, or remove it"
        )
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        by = os.read(handle, 200).decode(errors="replace").strip()
        os.close(handle)
        raise _taken(file, f"({by})" if by else "") from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): nothing keeps a second run out of its folder", file, error.strerror)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held[made.st_dev, made.st_ino] = os.getpid()
    return handle, (made.st_dev, made.st_ino)


def _taken(file: Path, by: str) -> TrainingError:
    return TrainingError(f"another run {by} is in {file.parent}: give this one another folder, or wait for its end")


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:
        msvcrt: Any = __import__("msvcrt")
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
