"""`module:function` targets of the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import TargetError

__all__ = ["call_target", "load_target"]


def load_target(target: str) -> Callable[[], Any]:
    """The function that `module:function` names; the working directory is searched first.

    Raises:
        TargetError: no such module or function, or the module fails on import.
    """
    module_name, _, function_name = target.partition(":")
    if not module_name or not function_name:
        raise TargetError(f"{target!r} is not of the form module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise TargetError(f"{target!r}: no module named {error.name!r}; run from the folder that holds it") from error
    except Exception as error:
        raise TargetError(f"{target!r}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = ", ".join(sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))) or "none"
        raise TargetError(f"{target!r}: {module_name} has no function {function_name!r}; it has: {names}")
    return function


def call_target(function: Callable[[], Any], target: str) -> Any:
    """What the user's function returns.

    Raises:
        TargetError: it fails, or wants arguments.
    """
    try:
        return function()
    except Exception as error:
        raise TargetError(f"{target!r} failed: {type(error).__name__}: {error}") from error
