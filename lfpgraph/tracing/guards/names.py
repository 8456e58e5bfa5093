"""Which attributes the code of a run can have read, by their names.

An attribute is read by a name in the code (`self.alpha`), or by `getattr` and its like with a name that is a string: one in
quotes, one made of parts (`f"conv{i}"`, `"conv" + str(i)`), or one that some object holds.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from dis import get_instructions
from itertools import chain
from typing import Any

from .bytecode import listed

__all__ = ["Names"]

_BY_ANY_NAME = {"vars", "dir", "getmembers", "asdict", "astuple"}  # these read attributes nobody names
_BY_STRING = {"getattr", "hasattr", "attrgetter", "__getattribute__", "methodcaller"}
_PLACES = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]|\{[^{}]*\}")  # where `%` and `format` put something
_FORMATS, _FIELDS = {"format", "format_map"}, re.compile(r"\{(\w*(?:\.\w+)+)")  # "{0.scale}".format(config)
_ALWAYS = {"forward", "training", "_call_impl", "_compiled_call_impl"}


class Names:
    """The names that code of a run can have read attributes by.

    Attributes:
        any: whether some of the code may have read attributes by whatever name they have; `any_of`: of objects of these
            classes, since the dictionary of all attributes of such an object was read.
        held_count: whether strings that objects hold count as names.
        of_user: what the user's code names, and not only torch's.
    """

    def __init__(self) -> None:
        self.any = self.held_count = False
        self.any_of: set[type] = set()
        self._tables: dict[types.CodeType, set[str]] = {}  # of code: variables whose dictionary of attributes it reads
        self.of_user: set[str] = set()
        self._whole = set(_ALWAYS)
        self._parts: set[str] = set()

    def add(self, code: types.CodeType, of_user: bool) -> None:
        """Take in what a piece of code names; `of_user` is False for torch's own, which reads users' attributes by name."""
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]  # `f(**held)`
        quoted = {c for c in chain.from_iterable(map(listed, code.co_consts)) if isinstance(c, str)}
        self._whole.update(code.co_names, arguments, quoted)
        named = set(code.co_names)
        if not _FORMATS.isdisjoint(named):
            self._whole.update(
                name for text in quoted for field in _FIELDS.findall(text) for name in field.split(".")[1:]
            )
        if of_user:
            self.of_user |= named | quoted
        if of_user and "__dict__" in named:
            self._tables[code] = _read_tables(code)
        self.any = self.any or (of_user and not _BY_ANY_NAME.isdisjoint(named))
        if of_user and not _BY_STRING.isdisjoint(named):
            self.held_count = True
            self._parts.update(part for text in quoted for part in _PLACES.split(text) if part)
            self.any = self.any or _joins_unknown(code)

    def add_call(self, code: types.CodeType, values: Mapping[str, Any]) -> None:
        """Take in that code has been called, with its arguments and closure."""
        for name in self._tables.get(code, ()):
            if name in values:
                self.any_of.add(type(values[name]))
            else:
                self.any = True

    def add_held(self, values: Iterable[Any]) -> None:
        """Take in the strings among values that objects hold."""
        self._whole.update(value for value in values if type(value) is str)

    def __contains__(self, name: object) -> bool:
        return self.any or name in self._whole or (isinstance(name, str) and any(part in name for part in self._parts))


def _read_tables(code: types.CodeType) -> set[str]:
    """The variables whose dictionary of all attributes code reads.

    That of a class (`self.__class__.__dict__`) is none: attributes of classes are watched by name.
    """
    read = [step.argval for step in get_instructions(code) if step.opname.startswith(("LOAD_", "STORE_"))]
    return {str(name) for name, after in zip(["", *read], read) if after == "__dict__" and name != "__class__"}


def _joins_unknown(code: types.CodeType) -> bool:
    """Whether a string is made of parts of which none is in the code, as in `f"{a}{b}"`."""
    unknown = 0
    for step in get_instructions(code):
        if step.opname in ("FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC"):
            unknown += 1
        elif step.opname == "BUILD_STRING":
            if unknown >= int(step.arg or 0):
                return True
            unknown = 0
    return unknown > 0
