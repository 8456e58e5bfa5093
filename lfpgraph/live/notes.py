"""What is noted of a run's steps: arguments with the values by number, modules, lines of the user's code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Notes", "Ref", "refs_in", "user_line"]


class Ref(int):
    """The number of a value, where a tensor stood among an operation's arguments."""


class Notes(NamedTuple):
    """What is noted of each step of a run that is not expected: its arguments, and where in the model it is."""

    templates: list[Any]
    paths: dict[int, str]
    lines: dict[int, str]


def refs_in(value: Any) -> Iterator[int]:
    """The numbers of the values in an operation's arguments."""
    if isinstance(value, Ref):
        yield int(value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)
    elif isinstance(value, dict):
        yield from refs_in(list(value.values()))


def user_line() -> str:
    """`File "...", line N` of the innermost frame outside torch and lfpgraph, as torch writes it in stack traces."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and "/lfpgraph/" not in file and not file.startswith("<"):
            return f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}'
        frame = frame.f_back  # type: ignore[assignment]
    return ""
