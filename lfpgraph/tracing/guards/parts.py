"""What functions and objects hold besides a dictionary of attributes: the cells of a closure, slots."""

from __future__ import annotations

import contextvars
import functools
import gc
import io
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import BuiltinMethodType, FunctionType, MappingProxyType, ModuleType
from typing import Any

from .items import MISSING

__all__ = [
    "CACHE",
    "cells_of",
    "content_of",
    "is_stream",
    "kept_by",
    "read_through",
    "slots_of",
    "state_of",
    "values_of",
    "words_of",
]

CACHE = type(functools.lru_cache(lambda: None))
_STREAMS = {"__next__", "get_nowait", "recv", "get_obj"}
_LOCK = type(threading.Lock())
_TABLES: tuple[dict[Any, Any], ...] = ({}, OrderedDict())
_VIEWS = tuple(type(view) for table in _TABLES for view in (table.keys(), table.values(), table.items()))


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


def read_through(value: Any) -> list[Any]:
    """What something without attributes gives access to: the dictionary under a view of it, the object of a bound method."""
    if isinstance(value, (MappingProxyType, *_VIEWS)):
        return [under for under in gc.get_referents(value) if isinstance(under, dict)]
    if isinstance(value, BuiltinMethodType) and not isinstance(value.__self__, (ModuleType, type, type(None))):
        return [value.__self__]
    return []


def words_of(value: Any) -> list[str]:
    """The attributes that something made to read them reads."""
    if not isinstance(value, operator.attrgetter | operator.methodcaller):
        return []
    return [word for text in value.__reduce__()[1] if isinstance(text, str) for word in text.split(".")]


def state_of(value: Any) -> Callable[[], tuple[Any, ...]] | None:
    """What reads the state of something that has no attributes for it: a lock, a cache of results; None for others."""
    if isinstance(value, _LOCK):
        return lambda: (value.locked(),)
    if isinstance(value, contextvars.ContextVar):
        return lambda: (value.get(MISSING),)
    if isinstance(value, io.StringIO | io.BytesIO):
        return lambda: () if value.closed else (value.getvalue(),)
    if isinstance(value, CACHE) and (kept := kept_by(value)) is not None:
        keys = list(kept)
        return lambda: tuple(kept.get(key, MISSING) for key in keys)
    return None


def is_stream(value: Any) -> bool:
    """Whether something may give another value each time: an iterator, a queue, a number that processes share."""
    return not _STREAMS.isdisjoint(dir(type(value))) and not isinstance(value, io.IOBase)  # `Suspects` sees files used


def kept_by(cache: Any) -> dict[Any, Any] | None:
    """The dictionary in which a function with an lru_cache keeps its results."""
    return next((held for held in gc.get_referents(cache) if type(held) is dict and held is not vars(cache)), None)
