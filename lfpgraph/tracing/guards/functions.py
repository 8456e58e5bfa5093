"""Which function is it that a frame of Python code runs, with which defaults and closure?"""

from __future__ import annotations

import gc
import inspect
import sys
import types
from collections.abc import Collection
from typing import Any

from torch import nn

from .parts import cells_of, content_of

__all__ = ["FRAMES_HOLD_FUNCTIONS", "function_of", "functions_with", "has_more", "holds", "is_of_another_module"]

FRAMES_HOLD_FUNCTIONS = (3, 11) <= sys.version_info < (3, 13)


def function_of(frame: types.FrameType, of: type, returned: bool = True) -> types.FunctionType | None:
    """The function that a frame has run, if it is easily found.

    In some versions of Python a frame that has returned holds it, where only the garbage collector looks; to look there in
    others may end the process, as it may to read the variables of such a frame.

    Args:
        of: the class of its first argument.
        returned: whether the frame has returned.
    """
    code = frame.f_code
    held = gc.get_referents(frame) if FRAMES_HOLD_FUNCTIONS and returned else []
    candidates: list[Any] = [f for f in held if isinstance(f, types.FunctionType)]
    candidates.append(frame.f_globals.get(code.co_name))
    candidates += [vars(cls).get(code.co_name) for cls in of.__mro__]
    for candidate in candidates:
        if isinstance(candidate, types.FunctionType):
            found = inspect.unwrap(candidate, stop=lambda f: getattr(f, "__code__", None) is code)
            if getattr(found, "__code__", None) is code:
                return found
    return None


def has_more(code: types.CodeType) -> bool:
    """Whether a function is more than its code: it has defaults, perhaps, or a closure."""
    return bool(code.co_argcount or code.co_kwonlyargcount or code.co_freevars)


def functions_with(codes: Collection[types.CodeType]) -> list[types.FunctionType]:
    """All functions that have one of these codes."""
    if not codes:
        return []
    frozen = gc.get_freeze_count()
    if frozen:  # what is frozen is not looked through
        gc.unfreeze()
    held = gc.get_referrers(*codes)
    if frozen:
        gc.collect()
        gc.freeze()
    return [f for f in held if isinstance(f, types.FunctionType) and f.__code__ in codes]


def holds(function: types.FunctionType, free: dict[str, Any]) -> bool:
    """Whether the closure of a function held these variables."""
    return all(name not in free or content_of(cell) is free[name] for cell, name in cells_of(function))


def is_of_another_module(function: types.FunctionType, calls: Collection[dict[str, Any]]) -> bool:
    """Whether the closure of a function holds a module that none of these calls had there."""
    for cell, name in cells_of(function):
        held = content_of(cell)
        if isinstance(held, nn.Module) and all(free.get(name, held) is not held for free in calls):
            return True
    return False
