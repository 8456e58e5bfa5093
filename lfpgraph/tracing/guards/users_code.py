"""Whose code is it: the user's (a model's, or any library's), torch's, Python's own, or this library's?"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import sysconfig
import threading
import types
from typing import Any

import torch
from torch import Tensor

__all__ = ["asker", "is_plain_object", "is_users_class", "owner_of", "place_of"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGE = __name__.partition(".")[0]
_OWN = os.path.dirname(str(sys.modules[_PACKAGE].__file__)) + os.sep
_NOT_MACHINERY = ("models_zoo", "experiments", "demo")  # folders of this library that hold models
_PYTHON = {os.path.realpath(path) + os.sep for name, path in sysconfig.get_paths().items() if "stdlib" in name}
_PYTHON |= {path + os.sep for name, path in sysconfig.get_paths().items() if "stdlib" in name}
_OPEN = (types.SimpleNamespace, argparse.Namespace, threading.local)  # Python's own, and made to hold a user's values


@functools.cache
def owner_of(file: str) -> str:
    """Whose a file of Python code is: "torch", "python", "own" (this library's machinery) or "user"."""
    if file.startswith(_TORCH):
        return "torch"
    if file.startswith(_OWN):
        folder = file[len(_OWN) :].split(os.sep)[0]
        return "user" if folder in _NOT_MACHINERY else "own"
    if file.startswith("<frozen ") or (
        any(file.startswith(path) for path in _PYTHON) and "-packages" + os.sep not in file
    ):
        return "python"
    return "user"


def is_plain_object(value: Any) -> bool:
    """Whether a value is an object of a class of the user's, such as a configuration, so that its attributes count."""
    if isinstance(value, _OPEN):
        return True
    if isinstance(value, Tensor | type | types.ModuleType):
        return False
    return is_users_class(type(value))


def is_users_class(cls: type) -> bool:
    """Whether a class is the user's (or any library's but torch's, numpy's and Python's own)."""
    package, _, rest = str(cls.__module__).partition(".")
    if package == _PACKAGE:
        return rest.partition(".")[0] in _NOT_MACHINERY
    return package not in ("torch", "numpy") and package not in sys.stdlib_module_names


def asker(frame: types.FrameType | None, through_torch: bool = False) -> types.FrameType | None:
    """The frame of user's code that something is done for, seen through Python's own library, and torch where that is asked.

    None where torch or this library does it, or where Python does it to import a module; nor does a module count that
    torch imports when it is first needed.
    """
    through = ("python", "torch") if through_torch else ("python",)
    while frame is not None:
        owner = owner_of(frame.f_code.co_filename)
        if owner == "user":
            return None if _is_imported_by_torch(frame) else frame
        if owner not in through or "importlib" in frame.f_code.co_filename:
            return None
        frame = frame.f_back
    return None


def _is_imported_by_torch(frame: types.FrameType) -> bool:
    """Whether a frame runs because torch is importing a module."""
    outer = frame.f_back
    while outer is not None:
        if "importlib" in outer.f_code.co_filename:
            while outer is not None and owner_of(outer.f_code.co_filename) == "python":
                outer = outer.f_back
            if outer is None or owner_of(outer.f_code.co_filename) == "torch":
                return outer is not None
        outer = None if outer is None else outer.f_back
    return False


def place_of(frame: types.FrameType | None) -> str:
    """`file.py:line` of the innermost user's code from a frame on."""
    while frame is not None and owner_of(frame.f_code.co_filename) != "user":
        frame = frame.f_back
    return "" if frame is None else f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
