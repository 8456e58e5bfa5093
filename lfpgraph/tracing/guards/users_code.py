"""Whose code is it: the user's (a model's, or any library's), torch's, Python's own, or this library's?"""

from __future__ import annotations

import collections
import functools
import os
import sys
import sysconfig
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["asker", "is_plain_object", "is_pythons_class", "is_users_class", "owner_of", "place_of"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGE = __name__.partition(".")[0]
_OWN = os.path.dirname(str(sys.modules[_PACKAGE].__file__)) + os.sep
_NOT_MACHINERY = ("models_zoo", "experiments", "demo")  # folders of this library that hold models
_PYTHON = {os.path.realpath(path) + os.sep for name, path in sysconfig.get_paths().items() if "stdlib" in name}
_PYTHON |= {path + os.sep for name, path in sysconfig.get_paths().items() if "stdlib" in name}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc)
_CONTAINERS = (collections.OrderedDict, collections.defaultdict, collections.Counter, collections.deque)
# Packages, and modules of torch's, whose objects say nothing that can change, or keep what they have found out before.
_CLOSED = {"builtins", "datetime", "decimal", "enum", "fractions", "functools", "inspect", "ipaddress", "logging", "pathlib",
           "re", "typing", "uuid", "_abc"}  # fmt: skip
_CLOSED_PARTS = ("torch._", "torch.jit", "torch.fx", "torch.library", "torch.utils.hooks", "torch.overrides")


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
    """Whether the attributes of a value count: of a configuration, an event, an optimizer.

    Those of classes, modules, functions and operations do not, nor do those that say nothing of what is computed.
    """
    if isinstance(value, (Tensor, type, types.ModuleType, *_FUNCTIONS)) or type(value) in _CONTAINERS:
        return False
    module = str(type(value).__module__)
    package = module.partition(".")[0]
    if package == _PACKAGE:
        return is_users_class(type(value))
    return package not in _CLOSED and not module.startswith(_CLOSED_PARTS)


def is_users_class(cls: type) -> bool:
    """Whether a class is the user's (or any library's but torch's, numpy's and Python's own)."""
    package, _, rest = str(cls.__module__).partition(".")
    if package == _PACKAGE:
        return rest.partition(".")[0] in _NOT_MACHINERY
    return package not in ("torch", "numpy") and package not in sys.stdlib_module_names


def is_pythons_class(cls: type) -> bool:
    """Whether a class is of Python's library or numpy's, whose code is not read for what it names."""
    package = str(cls.__module__).partition(".")[0]
    return package == "numpy" or package in sys.stdlib_module_names


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
