"""Translators of operations that read or write at places: gather, scatter, embedding, indexing, sorting."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import filled, operand

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


@translates(aten.scatter.src, aten.scatter.value)
def scatter(b: Builder, result: Any, x: Value, axis: int, index: Value, source: Any) -> Any:
    if not isinstance(source, Value):
        source = filled(b, [b.size(index, i) for i in range(index.rank)], source, x.dtype)
    return b.op("ScatterElements", x, _index(b, index), source, axis=axis % x.rank)


def _axes(indices: Sequence[Value | None], masked: str) -> tuple[list[int], int]:
    """The axes that index tensors stand for, and the largest rank of these; for a mask an error that says `masked`."""
    chosen = [index for index in indices if index is not None]
    if any(index.dtype == torch.bool for index in chosen):
        raise NotImplementedError(masked)
    return [i for i, index in enumerate(indices) if index is not None], max(index.rank for index in chosen)


def _side_by_side(axes: list[int]) -> bool:
    return axes == list(range(axes[0], axes[0] + len(axes)))


def _first(axes: list[int], rank: int) -> list[int]:
    """The order of axes that puts some of them first."""
    return [*axes, *(i for i in range(rank) if i not in axes)]


def _places(b: Builder, indices: Sequence[Value | None]) -> Any:
    """Index tensors broadcast and stacked on a new last axis."""
    names = [_index(b, index) for index in indices if index is not None]
    if len(names) > 1:
        shape = b.op("Shape", functools.reduce(lambda total, name: b.op("Add", total, name), names))
        names = [b.op("Expand", name, shape) for name in names]
    return b.op("Concat", *(b.op("Unsqueeze", name, b.ints(-1)) for name in names), axis=-1)


@translates(aten.index.Tensor)
def index_tensor(b: Builder, result: Any, x: Value, indices: Sequence[Value | None]) -> Any:
    """Indexing with integer tensors on axes that stand side by side."""
    axes, rank = _axes(indices, "indexing with a mask: its result has a size that depends on values")
    source = b.cast(x, torch.bool, torch.int32) if x.dtype == torch.bool else x
    if len(axes) == 1:
        found = b.op("Gather", source, _index(b, indices[axes[0]]), axis=axes[0])  # type: ignore[arg-type]
    elif _side_by_side(axes):
        found = b.op("GatherND", b.permute(source, _first(axes, x.rank)), _places(b, indices))
        # The indexed axes come first now; their place is before axis `axes[0]` of the rest.
        before, rest = range(rank, rank + axes[0]), range(rank + axes[0], rank + x.rank - len(axes))
        found = b.permute(found, [*before, *range(rank), *rest])
    else:
        raise NotImplementedError("indexing with tensors that do not stand side by side")
    return b.cast(found, torch.int32, torch.bool) if x.dtype == torch.bool else found


@translates(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(
    b: Builder, result: Any, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Any:
    """Writing at integer places of the first axes, or of others that stand side by side."""
    axes, rank = _axes(indices, "writing where a mask is true")
    order, value = _first(axes, x.rank), operand(b, values, x.dtype)
    if order != sorted(order):
        if not _side_by_side(axes) or values.rank != rank + x.rank - len(axes):
            raise NotImplementedError("writing at tensors of places that do not stand side by side")
        moved = [*range(axes[0], axes[0] + rank), *range(axes[0]), *range(axes[0] + rank, values.rank)]
        value = b.permute(value, moved)
    source, places = b.permute(x, order), _places(b, indices)
    shape = b.op("Concat", b.op("Shape", places, end=-1), b.op("Shape", source, start=len(axes)), axis=0)
    how: dict[str, Any] = {"reduction": "add"} if accumulate else {}
    found = b.op("ScatterND", source, places, b.op("Expand", value, shape), **how)
    return b.permute(found, [order.index(i) for i in range(x.rank)])


@translates(aten.topk.default)
def topk(b: Builder, result: Any, x: Value, k: Any, axis: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return list(b.op("TopK", x, b.vector(k), outputs=2, axis=axis, largest=int(largest), sorted=int(sorted)))


@translates(aten.sort.default)
def sort(b: Builder, result: Any, x: Value, axis: int = -1, descending: bool = False) -> Any:
    return list(b.op("TopK", x, b.vector(b.size(x, axis)), outputs=2, axis=axis, largest=int(descending)))
