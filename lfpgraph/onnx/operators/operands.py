"""Tensors, numbers and open sizes as operands of one dtype, for translators."""

from __future__ import annotations

from typing import Any

import torch

from .builder import Builder, Value

__all__ = ["binary", "common_dtype", "operand", "scalar"]


def scalar(b: Builder, number: float, dtype: torch.dtype) -> str:
    """A constant of no dimensions."""
    return b.constant(torch.tensor(number, dtype=dtype))


def operand(b: Builder, item: Any, dtype: torch.dtype) -> Any:
    """A tensor, number or open size as an operand of a dtype."""
    if isinstance(item, Value):
        return b.cast(item, item.dtype, dtype)
    if isinstance(item, str):
        return b.op("Squeeze", b.cast(item, torch.int64, dtype), b.ints(0))
    return scalar(b, item, dtype)


def common_dtype(*items: Any) -> torch.dtype:
    """The dtype in which operands meet, as torch promotes them."""
    probes: list[Any] = []
    for item in items:
        if isinstance(item, Value):
            probes.append(torch.empty((1,) * item.rank, dtype=item.dtype))
        else:
            probes.append(1 if isinstance(item, str) else item)
    found: Any = probes[0]
    for probe in probes[1:]:
        dtype = torch.result_type(found, probe)
        rank = max(getattr(found, "dim", lambda: 0)(), getattr(probe, "dim", lambda: 0)())
        found = torch.empty((1,) * rank, dtype=dtype)
    return found.dtype if isinstance(found, torch.Tensor) else torch.result_type(found, found)


def binary(b: Builder, kind: str, x: Any, y: Any, dtype: torch.dtype) -> str:
    """An operator of two operands that meet in a dtype."""
    return str(b.op(kind, operand(b, x, dtype), operand(b, y, dtype)))
