"""Translators of operations that take a part of an axis or put it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import operand, scalar

aten = torch.ops.aten
_LAST = 2**62  # stands for the end of an axis


def cut(b: Builder, x: Any, axis: int, start: Any, end: Any, step: int = 1) -> Any:
    """A range of one axis."""
    return b.op("Slice", x, b.vector(start), b.vector(end), b.ints(axis), b.ints(step))


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


def _plus(b: Builder, size: Any, number: int) -> Any:
    return size + number if isinstance(size, int) else b.op("Add", size, b.ints(number))


def _between_zeros(b: Builder, x: Any, rank: int, axis: int, before: Any, after: Any, dtype: torch.dtype) -> Any:
    """Zeros before and after x along an axis."""
    if before == 0 and after == 0:
        return x
    widths: list[Any] = [0] * (2 * rank)
    widths[axis], widths[rank + axis] = before, after
    return b.op("Pad", x, b.sizes(widths), scalar(b, 0, dtype))


@translates(aten.slice_backward.default)
def slice_backward(
    b: Builder, result: Any, s: Value, shape: Sequence[Any], axis: int, start: Any, end: Any, step: int
) -> Any:
    """Zeros around the signal of a slice: a Pad where the slice has no step, else a ScatterND along its places."""
    axis %= s.rank
    size = shape[axis]
    if step == 1 and isinstance(start, int) and start >= 0:
        stop = _plus(b, b.size(s, axis), start)
        known = isinstance(size, int) and isinstance(stop, int)
        after = size - stop if known else b.op("Sub", b.vector(size), b.vector(stop))
        return _between_zeros(b, s.name, s.rank, axis, start, after, s.dtype)
    everything = b.op("Range", scalar(b, 0, torch.int64), operand(b, size, torch.int64), scalar(b, 1, torch.int64))
    places = cut(b, everything, 0, start, end, step)
    order = [axis, *(i for i in range(s.rank) if i != axis)]
    empty = b.op("Expand", scalar(b, 0, s.dtype), b.sizes([shape[i] for i in order]))
    full = b.op("ScatterND", empty, b.op("Unsqueeze", places, b.ints(1)), b.permute(s, order))
    return b.permute(full, [order.index(i) for i in range(s.rank)])


@translates(aten.select_backward.default)
def select_backward(b: Builder, result: Any, s: Value, shape: Sequence[Any], axis: int, index: int) -> Any:
    rank = len(shape)
    axis %= rank
    row, size = b.op("Unsqueeze", s, b.ints(axis)), shape[axis]
    before, after = (index, _plus(b, size, -index - 1)) if index >= 0 else (_plus(b, size, index), -index - 1)
    return _between_zeros(b, row, rank, axis, before, after, s.dtype)


@translates(aten.slice_scatter.default)
def slice_scatter(
    b: Builder, result: Any, x: Value, source: Value, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    axis %= x.rank
    if step == 1 and isinstance(start or 0, int) and (start or 0) >= 0:
        taken, first = b.size(source, axis), start or 0
        before, after = cut(b, x, axis, 0, first), cut(b, x, axis, _plus(b, taken, first), _LAST)
        return b.op("Concat", before, source, after, axis=axis)
    raise NotImplementedError("a slice_scatter with a step or an open start")
