"""What functions and objects hold besides a dictionary of attributes: the cells of a closure, slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

from .items import MISSING

__all__ = ["cells_of", "content_of", "slots_of", "values_of"]


def cells_of(function: FunctionType) -> list[tuple[Any, str]]:
    """The cells of a function's closure, and the names of what they hold."""
    return list(zip(function.__closure__ or (), function.__code__.co_freevars))


def content_of(cell: Any) -> Any:
    """What a closure's cell holds; MISSING if it is not set."""
    try:
        return cell.cell_contents
    except ValueError:  # what Python raises for a variable that is not set
        return MISSING


def slots_of(cls: type) -> list[str]:
    """The names of the slots that objects of a class have."""
    return [name for base in cls.__mro__ for name in _listed(vars(base).get("__slots__", ()))]


def values_of(value: Any, slots: list[str]) -> tuple[Any, ...]:
    """What the slots of an object hold."""
    return tuple(getattr(value, name, MISSING) for name in slots)


def _listed(slots: str | Iterable[str] | Mapping[str, Any]) -> list[str]:
    listed = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in listed if name not in ("__dict__", "__weakref__")]
