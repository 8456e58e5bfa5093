"""Translators of operations that reshape, order, join, repeat or pad tensors, or tell their sizes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import operand, scalar

aten = torch.ops.aten


@translates(aten.view.default, aten._unsafe_view.default)
def reshape(b: Builder, result: Any, x: Value, shape: Sequence[Any]) -> Any:
    known = [int(n) if isinstance(n, int) else None for n in result.shape]
    items = [size if n is None else n for n, size in zip(known, shape)]
    if sum(n is None for n in known) == 1 and 0 not in known:
        items = [-1 if n is None else n for n in known]
    if all(isinstance(n, int) for n in items):
        return b.op("Reshape", x, b.ints(*items))
    return b.op("Reshape", x, b.sizes(items), allowzero=int(-1 not in items))


@translates(aten.permute.default)
def permute(b: Builder, result: Any, x: Value, order: Sequence[int]) -> Any:
    return b.permute(x.name, [axis % x.rank for axis in order])


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


@translates(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
def split(b: Builder, result: Any, x: Value, how: Any = None, axis: int = 0) -> Any:
    if x.rank == len(result[0].shape) + 1:  # unbind's second argument is the axis
        axis = 0 if how is None else how
        return [b.op("Gather", x, b.constant(torch.tensor(i)), axis=axis % x.rank) for i in range(len(result))]
    parts = [part.shape[axis] for part in result]
    sizes = b.ints(*(int(n) for n in parts))
    found = b.op("Split", x, sizes, outputs=len(result), axis=axis % x.rank)
    return [found] if len(result) == 1 else list(found)


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


@translates(aten.sym_size.int)
def sym_size(b: Builder, result: Any, x: Value, axis: int) -> Any:
    return b.size(x, axis)


@translates(aten.sym_numel.default)
def sym_numel(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Reshape", b.op("Size", x), b.ints(1))


@translates(operator.getitem)
def getitem(b: Builder, result: Any, items: Sequence[Any], index: int) -> Any:
    return items[index]
