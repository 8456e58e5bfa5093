"""Writing files whole: what stood there before stays until the new file is complete."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["written_whole"]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder of its own, which is made and taken away again.

    What is written into that folder takes its place beside `path` at the end, the file of this name last; after an error,
    all is as it was. A link or a device is written to as it is.

    Raises:
        OSError: the folder of `path` cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
        yield Path(folder) / path.name
        for made in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(made, path.with_name(made.name))
