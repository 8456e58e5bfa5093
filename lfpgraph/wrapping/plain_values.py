"""What goes into a call and comes out of it that is no tensor, and what is set on tensors: what a program is made for."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["attached", "is_frozen", "layout_of", "made_by_its_run", "memory_of", "told_apart"]

_ITSELF = (int, str, bytes, Enum, type, nn.Module, FunctionType, BuiltinFunctionType)
_WRITTEN = (float, complex, type(None), type(...), slice, range, np.generic, torch.dtype, torch.device, torch.Size)


def is_frozen(leaf: Any) -> bool:
    """Whether an argument is a plain value, or a function or module, which are watched as they run."""
    if isinstance(leaf, BuiltinFunctionType) and not isinstance(leaf.__self__, ModuleType | type | None):
        return False  # `some_list.append`: what it is a method of may change, and nobody sees the call
    return isinstance(leaf, (*_ITSELF, *_WRITTEN))


_ELSEWHERE = (nn.Module, type, ModuleType, CodeType, logging.Logger, str, bytes)  # what these hold is not the output's
_MOST = 10_000  # objects that are looked at


def made_by_its_run(value: Any) -> str | None:
    """What an output holds that only the model's own run can make, by its type; None if there is nothing.

    Tensors have been taken out of it where a program can put its own (`flatten_output`). What is left are those in closures,
    generators, bound methods and containers that are no lists, tuples or dictionaries.
    """
    stack, seen = [value], dict[int, Any]()
    while stack:
        x = stack.pop()
        if id(x) in seen or isinstance(x, _ELSEWHERE):
            continue
        seen[id(x)] = x
        if len(seen) > _MOST or isinstance(x, Tensor) or hasattr(type(x), "__next__"):
            return type(x).__name__
        if isinstance(x, FunctionType) and x.__closure__:
            return "function"
        if isinstance(x, weakref.ref) and isinstance(x(), Tensor):
            return "weak reference to a tensor"
        if not isinstance(x, FunctionType):  # which refers to all of its module
            stack += gc.get_referents(x)
    return None


def told_apart(leaf: Any) -> Any:
    """What tells an argument that is no tensor from others: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    return type(leaf), leaf if isinstance(leaf, _ITSELF) else repr(leaf)


def attached(tensor: Tensor) -> Iterator[Any]:
    """Attributes that somebody has set on an argument, which the model may read."""
    for name, value in vars(tensor).items():
        if not name.startswith("_"):
            yield name, told_apart(value) if is_frozen(value) else id(value)


def layout_of(tensor: Tensor) -> Any:
    """How a tensor lies in memory, its sizes apart: whether it is contiguous, the order of its axes, what is expanded."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return str(tensor.layout)
    strides = tensor.stride()
    order = sorted(range(len(strides)), key=lambda axis: (-strides[axis], axis))
    return tensor.is_contiguous(), tuple(order), 0 in strides


def memory_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from others; of one that has none of its own, itself."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_nested
    return tensor.untyped_storage()._cdata if plain else id(tensor)
