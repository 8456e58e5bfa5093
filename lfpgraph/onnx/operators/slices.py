"""Translators of operations that take a part of an axis or put it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import scalar

aten = torch.ops.aten
_LAST = 2**62  # stands for the end of an axis


def cut(b: Builder, x: Any, axis: int, start: Any, end: Any, step: int = 1) -> Any:
    """A range of one axis."""
    bounds = [n if isinstance(n, str) else b.ints(n) for n in (start, end)]
    return b.op("Slice", x, *bounds, b.ints(axis), b.ints(step))


@translates(aten.slice.Tensor)
def slice_(b: Builder, result: Any, x: Value, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    start, end = (0 if start is None else start), (_LAST if end is None else end)
    if start == 0 and step == 1 and isinstance(end, int) and end >= _LAST:
        return x.name
    known = x.shape[axis]
    if start == 0 and step == 1 and isinstance(known, int) and isinstance(end, int) and end >= known:
        return x.name
    return cut(b, x, axis % x.rank, start, end, step)


@translates(aten.select.int)
def select(b: Builder, result: Any, x: Value, axis: int, index: Any) -> Any:
    if isinstance(index, str):
        return b.op("Gather", x, b.op("Squeeze", index, b.ints(0)), axis=axis % x.rank)
    return b.op("Gather", x, b.constant(torch.tensor(index)), axis=axis % x.rank)


@translates(aten.flip.default)
def flip(b: Builder, result: Any, x: Value, axes: Sequence[int]) -> Any:
    n = len(axes)
    return b.op(
        "Slice", x, b.ints(*[-1] * n), b.ints(*[-_LAST] * n), b.ints(*(a % x.rank for a in axes)), b.ints(*[-1] * n)
    )


@translates(aten.slice_backward.default)
def slice_backward(
    b: Builder, result: Any, s: Value, shape: Sequence[Any], axis: int, start: Any, end: Any, step: int
) -> Any:
    """Zeros around the signal of a slice: a Pad where the slice has no step, else a ScatterND along its places."""
    axis %= s.rank
    size = shape[axis]
    if step == 1 and isinstance(start, int) and start >= 0:
        before: list[Any] = [0] * s.rank
        after: list[Any] = [0] * s.rank
        before[axis] = start
        taken = b.size(s, axis)
        if isinstance(taken, int) and isinstance(size, int):
            after[axis] = size - start - taken
        else:
            used = b.op("Add", _vector(b, taken), b.ints(start))
            after[axis] = b.op("Sub", _vector(b, size), used)
        if before[axis] == 0 and after[axis] == 0:
            return s.name
        return b.op("Pad", s, b.sizes(before + after), scalar(b, 0, s.dtype))
    everything = b.op("Range", scalar(b, 0, torch.int64), _number(b, size), scalar(b, 1, torch.int64))
    places = cut(b, everything, 0, start, end, step)
    order = [axis, *(i for i in range(s.rank) if i != axis)]
    back = [order.index(i) for i in range(s.rank)]
    rows = b.op("Transpose", s, perm=order)
    empty = b.op("Expand", scalar(b, 0, s.dtype), b.sizes([shape[i] for i in order]))
    full = b.op("ScatterND", empty, b.op("Unsqueeze", places, b.ints(1)), rows)
    return b.op("Transpose", full, perm=back)


def _vector(b: Builder, size: Any) -> str:
    return size if isinstance(size, str) else b.ints(size)


def _number(b: Builder, size: Any) -> str:
    return str(b.op("Squeeze", size, b.ints(0))) if isinstance(size, str) else scalar(b, size, torch.int64)


@translates(aten.select_backward.default)
def select_backward(b: Builder, result: Any, s: Value, shape: Sequence[Any], axis: int, index: int) -> Any:
    rank = len(shape)
    axis %= rank
    if index < 0:
        size = shape[axis]
        if not isinstance(size, int):
            row = b.op("Unsqueeze", s, b.ints(axis))
            rest = b.op("Add", size, b.ints(index))
            widths: list[Any] = [0] * (2 * rank)
            widths[axis], widths[rank + axis] = rest, -1 - index
            return b.op("Pad", row, b.sizes(widths), scalar(b, 0, s.dtype))
        index += size
    row = Value(b.op("Unsqueeze", s, b.ints(axis)), s.dtype, (*s.shape[:axis], 1, *s.shape[axis:]))
    return slice_backward(b, result, row, shape, axis, index, index + 1, 1)


@translates(aten.slice_scatter.default)
def slice_scatter(
    b: Builder, result: Any, x: Value, source: Value, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    axis %= x.rank
    if step == 1 and isinstance(start or 0, int) and (start or 0) >= 0:
        taken = b.size(source, axis)
        first = start or 0
        stop: Any = first + taken if isinstance(taken, int) else b.op("Add", taken, b.ints(first))
        before, after = cut(b, x, axis, 0, first), cut(b, x, axis, stop, _LAST)
        return b.op("Concat", before, source, after, axis=axis)
    raise NotImplementedError("a slice_scatter with a step or an open start")
