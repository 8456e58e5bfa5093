"""Translators of operations that move, cut, join, repeat or make tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from .builder import Builder, Value
from .ops_elementwise import operand, scalar
from .registry import translates

aten = torch.ops.aten
_LAST = 2**62


@translates(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def reshape(b: Builder, result: Any, x: Value, shape: Sequence[Any]) -> Any:
    known = [int(n) if isinstance(n, int) else None for n in result.shape]
    items = [size if n is None else n for n, size in zip(known, shape)]
    if sum(n is None for n in known) == 1 and 0 not in known:
        items = [-1 if n is None else n for n in known]
    if all(isinstance(n, int) for n in items):
        return b.op("Reshape", x, b.ints(*items))
    return b.op("Reshape", x, b.sizes(items), allowzero=int(-1 not in items))


def _permute(b: Builder, x: Value, order: Sequence[int]) -> Any:
    order = [axis % x.rank for axis in order]
    return x.name if order == list(range(x.rank)) else b.op("Transpose", x, perm=order)


@translates(aten.permute.default)
def permute(b: Builder, result: Any, x: Value, order: Sequence[int]) -> Any:
    return _permute(b, x, order)


@translates(aten.t.default)
def t(b: Builder, result: Any, x: Value) -> Any:
    return _permute(b, x, list(range(x.rank))[::-1])


@translates(aten.transpose.int)
def transpose(b: Builder, result: Any, x: Value, first: int, second: int) -> Any:
    if x.rank == 0:
        return x.name
    order = list(range(x.rank))
    order[first], order[second] = order[second], order[first]
    return _permute(b, x, order)


@translates(aten.expand.default)
def expand(b: Builder, result: Any, x: Value, shape: Sequence[Any], implicit: bool = False) -> Any:
    items = [1 if isinstance(n, int) and n == -1 else n for n in shape]
    return b.op("Expand", x, b.sizes(items))


@translates(aten.unsqueeze.default)
def unsqueeze(b: Builder, result: Any, x: Value, axis: int) -> Any:
    return b.op("Unsqueeze", x, b.ints(axis % (x.rank + 1)))


@translates(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(b: Builder, result: Any, x: Value, axes: Any = None) -> Any:
    chosen = range(x.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    ones = [a % x.rank for a in chosen if x.rank and isinstance(x.shape[a], int) and x.shape[a] == 1]
    return b.op("Squeeze", x, b.ints(*ones)) if ones else x.name


@translates(aten.cat.default)
def cat(b: Builder, result: Any, items: Sequence[Value], axis: int = 0) -> Any:
    parts = [operand(b, x, result.dtype) for x in items if not (x.rank == 1 and x.shape[0] == 0 and result.dim() != 1)]
    return b.op("Concat", *parts, axis=axis % result.dim())


@translates(aten.stack.default)
def stack(b: Builder, result: Any, items: Sequence[Value], axis: int = 0) -> Any:
    axis %= result.dim()
    parts = [b.op("Unsqueeze", operand(b, x, result.dtype), b.ints(axis)) for x in items]
    return b.op("Concat", *parts, axis=axis)


@translates(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
def split(b: Builder, result: Any, x: Value, how: Any = None, axis: int = 0) -> Any:
    if x.rank == len(result[0].shape) + 1:  # unbind's second argument is the axis
        axis = 0 if how is None else how
        return [b.op("Gather", x, b.constant(torch.tensor(i)), axis=axis % x.rank) for i in range(len(result))]
    parts = [part.shape[axis] for part in result]
    sizes = b.ints(*(int(n) for n in parts))
    found = b.op("Split", x, sizes, outputs=len(result), axis=axis % x.rank)
    return [found] if len(result) == 1 else list(found)


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


@translates(aten.roll.default)
def roll(b: Builder, result: Any, x: Value, shifts: Sequence[int], axes: Sequence[int] = ()) -> Any:
    value: Any = x.name
    if not axes:
        value, axes = b.op("Reshape", x, b.ints(-1)), [0]
    for shift, axis in zip(shifts, axes):
        if shift:
            parts = [cut(b, value, axis % x.rank, -shift, _LAST), cut(b, value, axis % x.rank, 0, -shift)]
            value = b.op("Concat", *parts, axis=axis % x.rank)
    return value if len(axes) != 1 or x.rank == 1 else value


@translates(aten.repeat.default)
def repeat(b: Builder, result: Any, x: Value, times: Sequence[Any]) -> Any:
    value: Any = x.name
    if len(times) > x.rank:
        value = b.op("Unsqueeze", x, b.ints(*range(len(times) - x.rank)))
    return b.op("Tile", value, b.sizes(list(times)))


@translates(aten.constant_pad_nd.default)
def pad(b: Builder, result: Any, x: Value, widths: Sequence[Any], value: float = 0) -> Any:
    before: list[Any] = [0] * x.rank
    after: list[Any] = [0] * x.rank
    for i in range(len(widths) // 2):
        before[-1 - i], after[-1 - i] = widths[2 * i], widths[2 * i + 1]
    return b.op("Pad", x, b.sizes(before + after), scalar(b, value, x.dtype))


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


@translates(aten.select_scatter.default)
def select_scatter(b: Builder, result: Any, x: Value, source: Value, axis: int, index: int) -> Any:
    axis %= x.rank
    row = b.op("Unsqueeze", source, b.ints(axis))
    before = cut(b, x, axis, 0, index)
    after = cut(b, x, axis, index + 1 if index != -1 else _LAST, _LAST)
    return b.op("Concat", before, row, after, axis=axis)


@translates(aten.sym_size.int)
def sym_size(b: Builder, result: Any, x: Value, axis: int) -> Any:
    return b.size(x, axis)


@translates(aten.sym_numel.default)
def sym_numel(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Reshape", b.op("Size", x), b.ints(1))


def filled(b: Builder, shape: Sequence[Any], value: Any, dtype: torch.dtype) -> Any:
    """A tensor of one value."""
    if all(isinstance(n, int) for n in shape) and not isinstance(value, str):
        if not shape:
            return scalar(b, value, dtype)
    return b.op("Expand", operand(b, value, dtype), b.sizes(list(shape)))


@translates(aten.full.default)
def full(b: Builder, result: Any, shape: Sequence[Any], value: Any, **ignored: Any) -> Any:
    return filled(b, shape, value, result.dtype)


@translates(aten.new_full.default)
def new_full(b: Builder, result: Any, x: Value, shape: Sequence[Any], value: Any, **ignored: Any) -> Any:
    return filled(b, shape, value, result.dtype)


@translates(aten.zeros.default, aten.empty.memory_format)
def zeros(b: Builder, result: Any, shape: Sequence[Any], **ignored: Any) -> Any:
    return filled(b, shape, 0, result.dtype)


@translates(aten.ones.default)
def ones(b: Builder, result: Any, shape: Sequence[Any], **ignored: Any) -> Any:
    return filled(b, shape, 1, result.dtype)


@translates(aten.new_zeros.default, aten.new_empty.default)
def new_zeros(b: Builder, result: Any, x: Value, shape: Sequence[Any], **ignored: Any) -> Any:
    return filled(b, shape, 0, result.dtype)


@translates(aten.new_ones.default)
def new_ones(b: Builder, result: Any, x: Value, shape: Sequence[Any], **ignored: Any) -> Any:
    return filled(b, shape, 1, result.dtype)


@translates(aten.full_like.default)
def full_like(b: Builder, result: Any, x: Value, value: Any, **ignored: Any) -> Any:
    return filled(b, [b.size(x, i) for i in range(x.rank)], value, result.dtype)


@translates(aten.zeros_like.default, aten.empty_like.default)
def zeros_like(b: Builder, result: Any, x: Value, **ignored: Any) -> Any:
    return full_like(b, result, x, 0)


@translates(aten.ones_like.default)
def ones_like(b: Builder, result: Any, x: Value, **ignored: Any) -> Any:
    return full_like(b, result, x, 1)


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

    translate.__name__ = "triu" if upper else "tril"
    return translate


translates(aten.tril.default)(_triangle(0))
translates(aten.triu.default)(_triangle(1))


@translates(operator.getitem)
def getitem(b: Builder, result: Any, items: Sequence[Any], index: int) -> Any:
    return items[index]
