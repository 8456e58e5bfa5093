"""Arguments of a call that are no tensors, and what somebody has set on those that are: what a program is made for."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["attached", "is_frozen", "layout_of", "memory_of", "told_apart"]

_ITSELF = (int, str, bytes, Enum, type, nn.Module, FunctionType, BuiltinFunctionType)
_WRITTEN = (float, complex, type(None), type(...), slice, range, np.generic, torch.dtype, torch.device, torch.Size)


def is_frozen(leaf: Any) -> bool:
    """Whether an argument is a plain value, or a function or module, which are watched as they run."""
    return isinstance(leaf, (*_ITSELF, *_WRITTEN))


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
