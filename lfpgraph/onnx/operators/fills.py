"""Translators of operations that make tensors of one value, or ranges, or blank a triangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import operand, scalar

aten = torch.ops.aten

__all__ = ["filled"]


def filled(b: Builder, shape: Sequence[Any], value: Any, dtype: torch.dtype) -> Any:
    """A tensor of one value."""
    if all(isinstance(n, int) for n in shape) and not isinstance(value, str):
        if not shape:
            return scalar(b, value, dtype)
    return b.op("Expand", operand(b, value, dtype), b.sizes(list(shape)))


@translates(aten.full.default, aten.empty.memory_format)
def full(b: Builder, result: Any, shape: Sequence[Any], value: Any = 0, **ignored: Any) -> Any:
    return filled(b, shape, value, result.dtype)


@translates(aten.full_like.default, aten.empty_like.default)
def full_like(b: Builder, result: Any, x: Value, value: Any = 0, **ignored: Any) -> Any:
    return filled(b, [b.size(x, i) for i in range(x.rank)], value, result.dtype)


@translates(aten.arange.start_step, aten.arange.start, aten.arange.default)
def arange(b: Builder, result: Any, *bounds: Any, **ignored: Any) -> Any:
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    if all(isinstance(n, int | float) for n in (start, end, step)):
        return b.constant(torch.arange(start, end, step, dtype=result.dtype))
    limits = [operand(b, n, torch.int64) for n in (start, end, step)]
    return b.cast(b.op("Range", *limits), torch.int64, result.dtype)


def _triangle(upper: int) -> Any:
    def translate(b: Builder, result: Any, x: Value, diagonal: int = 0) -> Any:
        if x.dtype == torch.bool:
            number = b.cast(x, torch.bool, torch.int64)
            return b.cast(b.op("Trilu", number, scalar(b, diagonal, torch.int64), upper=upper), torch.int64, torch.bool)
        return b.op("Trilu", x, scalar(b, diagonal, torch.int64), upper=upper)

    return translate


translates(aten.tril.default)(_triangle(0))
translates(aten.triu.default)(_triangle(1))
