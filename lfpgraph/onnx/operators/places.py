"""Translators of operations that read or write at places: gather, scatter, embedding, indexing, sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .fills import filled
from .operands import operand

aten = torch.ops.aten


def _index(b: Builder, x: Value) -> Any:
    return b.cast(x, x.dtype, torch.int64)


@translates(aten.embedding.default)
def embedding(b: Builder, result: Any, weight: Value, indices: Value, *ignored: Any, **also: Any) -> Any:
    return b.op("Gather", weight, indices, axis=0)


@translates(aten.gather.default)
def gather(b: Builder, result: Any, x: Value, axis: int, index: Value, sparse_grad: bool = False) -> Any:
    if x.dtype == torch.bool:
        number = b.cast(x, torch.bool, torch.int32)
        found = b.op("GatherElements", number, _index(b, index), axis=axis % x.rank)
        return b.cast(found, torch.int32, torch.bool)
    return b.op("GatherElements", x, _index(b, index), axis=axis % max(x.rank, 1))


@translates(aten.index_select.default)
def index_select(b: Builder, result: Any, x: Value, axis: int, index: Value) -> Any:
    return b.op("Gather", x, index, axis=axis % x.rank)


@translates(aten.scatter_add.default)
def scatter_add(b: Builder, result: Any, x: Value, axis: int, index: Value, source: Value) -> Any:
    return b.op("ScatterElements", x, _index(b, index), source, axis=axis % x.rank, reduction="add")


@translates(aten.scatter.src)
def scatter(b: Builder, result: Any, x: Value, axis: int, index: Value, source: Value) -> Any:
    return b.op("ScatterElements", x, _index(b, index), source, axis=axis % x.rank)


@translates(aten.scatter.value)
def scatter_value(b: Builder, result: Any, x: Value, axis: int, index: Value, value: float) -> Any:
    shape = [b.size(index, i) for i in range(index.rank)]
    source = filled(b, shape, value, x.dtype)
    return b.op("ScatterElements", x, _index(b, index), source, axis=axis % x.rank)


def _places(b: Builder, indices: Sequence[Value | None]) -> tuple[list[int], Any]:
    """The axes that index tensors stand for, and the tensors broadcast and stacked on a new last axis."""
    axes = [i for i, index in enumerate(indices) if index is not None]
    chosen = [index for index in indices if index is not None]
    names = [_index(b, index) for index in chosen]
    if len(names) > 1:
        rank = max(index.rank for index in chosen)
        zero = names[0]
        for name in names[1:]:
            zero = b.op("Add", zero, name)
        shape = b.op("Shape", zero)
        names = [b.op("Expand", name, shape) if rank else name for name in names]
    return axes, b.op("Concat", *(b.op("Unsqueeze", name, b.ints(-1)) for name in names), axis=-1)


@translates(aten.index.Tensor)
def index_tensor(b: Builder, result: Any, x: Value, indices: Sequence[Value | None]) -> Any:
    """Indexing with integer tensors on axes that stand side by side."""
    if any(index is not None and index.dtype == torch.bool for index in indices):
        raise NotImplementedError("indexing with a mask: its result has a size that depends on values")
    axes = [i for i, index in enumerate(indices) if index is not None]
    source: Any = x.name
    if x.dtype == torch.bool:
        source = b.cast(x, torch.bool, torch.int32)
    if len(axes) == 1:
        chosen = indices[axes[0]]
        assert chosen is not None
        found = b.op("Gather", source, _index(b, chosen), axis=axes[0])
    else:
        if axes != list(range(axes[0], axes[0] + len(axes))):
            raise NotImplementedError("indexing with tensors that do not stand side by side")
        rank = max(index.rank for index in indices if index is not None)
        order = [*axes, *(i for i in range(x.rank) if i not in axes)]
        if order != list(range(x.rank)):
            source = b.op("Transpose", source, perm=order)
        found = b.op("GatherND", source, _places(b, indices)[1])
        if axes[0]:  # the indexed axes come first now; their place is before axis `axes[0]` of the rest
            before = list(range(rank, rank + axes[0]))
            rest = list(range(rank + axes[0], rank + x.rank - len(axes)))
            found = b.op("Transpose", found, perm=[*before, *range(rank), *rest])
    return b.cast(found, torch.int32, torch.bool) if x.dtype == torch.bool else found


@translates(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(
    b: Builder, result: Any, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Any:
    """Writing at integer places of the first axes."""
    axes = [i for i, index in enumerate(indices) if index is not None]
    if any(index is not None and index.dtype == torch.bool for index in indices):
        raise NotImplementedError("writing where a mask is true")
    order = [*axes, *(i for i in range(x.rank) if i not in axes)]
    source: Any = x.name
    rank = max(index.rank for index in indices if index is not None)
    value: Any = values.name
    if order != list(range(x.rank)):
        if axes != list(range(axes[0], axes[0] + len(axes))) or values.rank != rank + x.rank - len(axes):
            raise NotImplementedError("writing at tensors of places that do not stand side by side")
        source = b.op("Transpose", source, perm=order)
        moved = [*range(axes[0], axes[0] + rank), *range(axes[0]), *range(axes[0] + rank, values.rank)]
        value = b.op("Transpose", value, perm=moved)
    places = _places(b, indices)[1]
    shape = b.op("Concat", b.op("Shape", places, end=-1), b.op("Shape", source, start=len(axes)), axis=0)
    value = b.op("Expand", operand(b, values, x.dtype) if value == values.name else value, shape)
    how: dict[str, Any] = {"reduction": "add"} if accumulate else {}
    found = b.op("ScatterND", source, places, value, **how)
    if order == list(range(x.rank)):
        return found
    return b.op("Transpose", found, perm=[order.index(i) for i in range(x.rank)])


@translates(aten.topk.default)
def topk(b: Builder, result: Any, x: Value, k: Any, axis: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    count = k if isinstance(k, str) else b.ints(k)
    return list(b.op("TopK", x, count, outputs=2, axis=axis, largest=int(largest), sorted=int(sorted)))


@translates(aten.sort.default)
def sort(b: Builder, result: Any, x: Value, axis: int = -1, descending: bool = False) -> Any:
    size = b.size(x, axis)
    count = size if isinstance(size, str) else b.ints(size)
    return list(b.op("TopK", x, count, outputs=2, axis=axis, largest=int(descending)))
