"""Tensors, numbers and open sizes as operands of one dtype, for translators; tensors of one value, ranges and triangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value

__all__ = ["binary", "common_dtype", "each_of", "filled", "operand", "scalar"]

aten = torch.ops.aten


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


def each_of(values: Sequence[int], n: int) -> list[int]:
    """A number for each of n axes, where one may stand for all."""
    items = [int(v) for v in values]
    return items * n if len(items) == 1 else items


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
