"""Numbers that a ruleset gives in units of something: a floor of "0.3 rms", a unit of "1/3 start"."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

from ..errors import CompositeError

__all__ = ["floor_of", "unit_of"]


@functools.lru_cache
def floor_of(floor: float | str) -> tuple[float, bool]:
    """A ruleset's floor as a number, and whether its unit is the parameter's root mean square.

    Raises:
        CompositeError: it is neither.
    """
    relative = isinstance(floor, str)
    number = _before(floor, "rms") if relative else _number(floor)
    if not number >= 0:
        raise CompositeError(f'floor={floor!r} must be a number of zero or more, or one before "rms", as "0.3 rms"')
    return number, relative


@functools.lru_cache
def unit_of(unit: str) -> float | None:
    """How much of the size that torch's layers start with is a ruleset's unit; None for the parameter's own.

    Raises:
        CompositeError: it is neither.
    """
    if unit == "parameter":
        return None
    share = _before(unit, "start")
    if not 0 < share < float("inf"):
        raise CompositeError(
            f'unit={unit!r} must be "parameter", "start", or a number above zero before that, as "1/3 start"'
        )
    return share


def _before(text: Any, name: str) -> float:
    """The number before a unit's name, 1 for the name alone; -1 where there is none."""
    if not isinstance(text, str) or not text.endswith(name):
        return -1.0
    return _number(text.removesuffix(name).strip() or 1)


def _number(value: Any) -> float:
    """What a number or its text says, also "1/3"; -1 if it is none."""
    try:
        return float(Fraction(value) if isinstance(value, str) and "/" in value else value)
    except (TypeError, ValueError, ZeroDivisionError):
        return -1.0
