"""Writing files whole: what stood there before stays until the new file is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["write_text", "written_whole"]

_NOTHING_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS)
_HELD_OPEN = ("/dev", "/proc")  # such as /dev/stdout, a link to the file that the shell writes to


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder of its own, which is made and taken away again.

    What is written into that folder takes its place beside `path` at the end, the file of this name last; after an error,
    all is as it was. A link or a device is written to as it is, and so is a file in a folder that takes no other.

    Raises:
        OSError: the folder of `path` cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    try:
        beside = tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent)
    except OSError as error:
        if error.errno not in _NOTHING_BESIDE or not path.exists():
            raise
        yield path
        return
    with beside as folder:
        yield Path(folder) / path.name
        for made in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            _put(made, path.with_name(made.name))


def _put(made: Path, place: Path) -> None:
    if place.is_file():
        shutil.copymode(place, made)
    try:
        os.replace(made, place)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a container's own file, mounted there, stays the file that it is
            raise
        shutil.copyfile(made, place)


def write_text(path: Path, text: str) -> None:
    """Write a report: the whole of it, or nothing. What a link leads to is written, and not the link replaced.

    Raises:
        OSError: it cannot be written.
    """
    linked = path.is_symlink() and not any(path.absolute().is_relative_to(folder) for folder in _HELD_OPEN)
    with written_whole(path.resolve() if linked else path) as new:
        new.write_text(text, encoding="utf-8")
