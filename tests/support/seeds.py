"""Random cases by number, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["check_all", "failures"]


def failures(check: Callable[..., object], seeds: Iterable[int], most: int = 10) -> dict[int, str]:
    """What is wrong with which seeds.

    Args:
        check: takes one seed or several, all of them equal modulo 4.
        most: how many it is given at once, of those that do not end with a 0. Where they fail, each is checked alone.
    """
    found: dict[int, str] = {}
    for group in _groups(list(seeds), most):
        wrong = _failure(check, *group)
        if wrong and len(group) > 1:
            alone = {seed: text for seed in group if (text := _failure(check, seed))}
            together = {group[0]: f"only together with {group[1:]}: {wrong}"}
            # a trace of several is refused where one decides on a value; alone, that one is traced by its values
            found |= alone or ({} if "DataDependentError" in wrong.partition("\n")[0] else together)
        elif wrong:
            found[group[0]] = wrong
    return found


def _groups(seeds: list[int], most: int) -> list[list[int]]:
    groups = [[seed] for seed in seeds if seed % 10 == 0]
    for rest in range(4):
        others = [seed for seed in seeds if seed % 10 and seed % 4 == rest]
        groups += [others[i : i + most] for i in range(0, len(others), most)]
    return groups


def _failure(check: Callable[..., object], *seeds: int) -> str:
    try:
        check(*seeds)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_all(check: Callable[..., object], start: int, count: int = 100) -> None:
    """Check the seeds from `start` on, to the end; every failure is told."""
    found = failures(check, range(start, start + count))
    assert not found, "\n".join(found.values())
