"""What the options of a ruleset may be; also numbers in units of something: a floor of "0.3 rms", a unit of "1/3 start"."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch._ops import OpOverload

from ..errors import CompositeError, check_choice, near
from ..registry import FAMILIES, Rule

__all__ = ["check_ruleset", "floor_of", "unit_of"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "rules": (True, False),
    "scale": ("weight", "signal"),
    "wake": (True, False),
    "vectors": ("weight", "signal"),
    "factors": ("weight", "signal"),
    "products": ("shared", "whole"),
    "sums": ("epsilon", "whole"),
}
_NAMES = (*FAMILIES, "derived", "mask")  # by name; the last two: operations without a rule, and masks that select


def check_ruleset(options: Mapping[str, Any]) -> None:
    """Raise a CompositeError unless each field of a `Ruleset` may be what it is."""
    for name, choices in _CHOICES.items():
        check_choice(name, options[name], choices, CompositeError)
    epsilon = options["epsilon"]
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not number or not 0 <= epsilon < math.inf:
        raise CompositeError(f"epsilon={epsilon!r} must be a number of zero or more")
    floor_of(options["floor"]), unit_of(options["unit"])
    _check_handlers(options["handlers"])


def _check_handlers(handlers: Any) -> None:
    """Raise a CompositeError unless these are rules by operation, or by the name of a family."""
    if not isinstance(handlers, Mapping):
        raise CompositeError(f"handlers={handlers!r} must be a dict of operations and rules")
    for op, handler in handlers.items():
        if not isinstance(op, OpOverload) and op not in _NAMES:
            raise CompositeError(
                f"handlers: {op!r} is neither an operation overload, such as torch.ops.aten.relu.default, nor a family"
                f"{near(op, _NAMES)}; families: {', '.join(_NAMES)}"
            )
        if not isinstance(handler, Rule) and not callable(handler):
            raise CompositeError(
                f"handlers: {handler!r} for {op} is no rule; give a function (call, signal, *arguments), or a "
                "lfpgraph.registry.Rule"
            )


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
