"""Random cases by number, many at a time."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["check_all"]


def check_all(check: Callable[[int], object], start: int, count: int = 100) -> None:
    """Check the seeds from `start` on, to the end; every failure is told."""
    failures = []
    for seed in range(start, start + count):
        try:
            check(seed)
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)
