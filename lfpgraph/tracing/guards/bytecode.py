"""What a piece of code names: globals, modules that it imports, attributes by words in quotes, gradients of tensors."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dis import get_instructions
from typing import Any

__all__ = ["globals_of", "imported_by", "listed", "names_in", "reads_of_gradients"]

_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")
_BY_STRING = {"getattr", "hasattr", "attrgetter", "vars", "__dict__"}
# What a program has not: the gradient, how often a tensor was written, where it comes from and what was asked of it.
_OF_TENSORS = {"grad", "_version", "is_leaf", "grad_fn", "_base", "output_nr", "retains_grad", "_backward_hooks"}
_NO_TENSORS = ("autograd", "func", "torch")  # which have a function `grad`


def listed(constant: Any) -> Iterator[Any]:
    """A constant of code; of a tuple what is in it."""
    if isinstance(constant, tuple | frozenset):
        for item in constant:
            yield from listed(item)
    else:
        yield constant


def globals_of(code: types.CodeType) -> list[str]:
    """The globals that code reads or writes."""
    return list({i.argval: None for i in get_instructions(code) if i.opname in _GLOBALS})


def names_in(code: types.CodeType, quoted: bool = False) -> tuple[str, ...]:
    """By which names code may read attributes.

    Args:
        quoted: count words in quotes as well, as where it looks up attributes by them.
    """
    if not quoted and _BY_STRING.isdisjoint(code.co_names):
        return code.co_names
    words = (c for c in listed(code.co_consts) if isinstance(c, str))
    return (*code.co_names, *(c for c in words if c.replace(".", "_").isidentifier()))


def imported_by(code: types.CodeType, package: str | None, name: str = "") -> list[types.ModuleType]:
    """The Python modules that a function of a package imports while it runs, as far as they have been imported before.

    Args:
        name: of one module; all that `import` names by default.
    """
    names = [name] if name else [i.argval for i in get_instructions(code) if i.opname == "IMPORT_NAME"]
    parents = (package or "").split(".")
    prefixes = [".".join(parents[: n + 1]) for n in range(len(parents))] if package else []
    places = [
        place
        for name in names
        for place in (name, *(f"{prefix}.{name.lstrip('.')}".rstrip(".") for prefix in prefixes))
    ]
    return [module for place in places if isinstance(module := sys.modules.get(place), types.ModuleType)]


def reads_of_gradients(code: types.CodeType, first_is_tensor: bool) -> str | None:
    """The attribute by which code reads of a tensor what a program does not have, if it does (`_OF_TENSORS`).

    Args:
        first_is_tensor: whether the first argument is a tensor; a module may have such an attribute of its own.
    """
    before = None
    for step in get_instructions(code):
        if step.opname == "LOAD_ATTR" and step.argval in _OF_TENSORS and before not in _NO_TENSORS:
            if first_is_tensor or not code.co_argcount or before != code.co_varnames[0]:
                return str(step.argval)
        before = step.argval
    return None
