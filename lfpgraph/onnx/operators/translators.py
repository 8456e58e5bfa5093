"""Translators of operations for which torch's own exporter has none, or one of more or slower nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from onnxscript import evaluator

from ..registry import translates
from .functions import op, torchs

__all__ = ["each_of"]

aten = torch.ops.aten
_LAST = 2**62  # stands for the end of an axis


def each_of(values: Sequence[int], n: int) -> list[int]:
    """A number for each of n axes, where one may stand for all."""
    items = [int(v) for v in values]
    return items * n if len(items) == 1 else items


def _size(x: Any, axis: int) -> Any:
    known, axis = x.shape[axis], axis % len(x.shape)
    return known if isinstance(known, int) else op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])


def _cut(x: Any, axis: int, start: Any, end: Any, step: int = 1) -> Any:
    return op.Slice(x, [start], [end], [axis], [step])


def _between_zeros(x: Any, rank: int, axis: int, before: Any, after: Any) -> Any:
    """Zeros before and after x along an axis."""
    widths = [0] * (2 * rank)
    widths[axis], widths[rank + axis] = before, after
    none = all(isinstance(n, int) and n == 0 for n in (before, after))
    return x if none else op.Pad(x, widths)


def _plus(size: Any, number: int) -> Any:
    return size + number if isinstance(size, int) else op.Add(size, number)


translates(aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default)(lambda x, **_: x)
translates(aten.floor_divide.Scalar)(lambda x, y: torchs(aten.floor_divide.default)(x, y))
translates(aten.isinf.default)(lambda x: op.IsInf(x))  # torch's works in float32
translates(aten.sym_numel.default)(lambda x: op.Size(x))


@translates(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(x: Any, y: Any) -> Any:
    """ONNX cannot see the sign of a zero: minus zero counts as plus zero here, as epsilon's formula wants it."""
    return op.Where(op.Less(y, 0.0), op.Neg(op.Abs(x)), op.Abs(x))


@translates(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    """Whole numbers stay whole; torch's translator goes through float32."""
    if not x.dtype.is_integer() or rounding_mode is None:
        return torchs(aten.div.Tensor_mode)(x, y, rounding_mode)
    return op.Div(x, y) if rounding_mode == "trunc" else torchs(aten.floor_divide.default)(x, y)


@translates(aten.view.default, aten._unsafe_view.default)
def reshape(x: Any, shape: Sequence[Any]) -> Any:
    unknown = [i for i, n in enumerate(shape) if not isinstance(n, int)]
    if len(unknown) == 1 and not {0, -1} & {n for n in shape if isinstance(n, int)}:
        shape = [-1 if i in unknown else n for i, n in enumerate(shape)]
    return op.Reshape(x, list(shape), allowzero=int(0 in shape if not unknown or -1 in shape else True))


@translates(aten.expand.default)
def expand(x: Any, shape: Sequence[Any], implicit: bool = False) -> Any:
    return op.Expand(x, [1 if isinstance(n, int) and n == -1 else n for n in shape])


@translates(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(x: Any, axes: Any = None) -> Any:
    rank = len(x.shape)
    chosen = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    ones = [a % rank for a in chosen if rank and isinstance(x.shape[a], int) and x.shape[a] == 1]
    return op.Squeeze(x, ones) if ones else x


@translates(aten.split.Tensor, aten.split_with_sizes.default)
def split(x: Any, how: Any, axis: int = 0) -> Any:
    size = x.shape[axis]
    sizes = how if isinstance(how, list) else [how] * (size // how) + [size % how] * (size % how > 0)
    if len(sizes) == 1:
        return [x]
    if sizes[:-1] == [-(-size // len(sizes))] * (len(sizes) - 1):
        return op.Split(x, axis=axis, num_outputs=len(sizes))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [_cut(x, axis, end - n, end) for end, n in zip(ends, sizes)]


@translates(aten.unbind.int)
def unbind(x: Any, axis: int = 0) -> Any:
    return [op.Gather(x, i, axis=axis) for i in range(x.shape[axis])]


@translates(aten.index.Tensor)
def index(x: Any, indices: Sequence[Any]) -> Any:
    axes = [axis for axis, places in enumerate(indices) if places is not None]
    if len(axes) == 1 and indices[axes[0]].dtype.is_integer():
        return op.Gather(x, indices[axes[0]], axis=axes[0])
    return torchs(aten.index.Tensor)(x, indices)


@translates(aten.slice.Tensor)
def slice_(x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    start, end, known = (0 if start is None else start), (_LAST if end is None else end), x.shape[axis]
    if step == 1 and isinstance(start, int) and start == 0 and isinstance(end, int):
        if end >= (known if isinstance(known, int) else _LAST):
            return x
    return _cut(x, axis, start, end, step)


@translates(aten.slice_backward.default)
def slice_backward(s: Any, shape: Sequence[Any], axis: int, start: Any, end: Any, step: int) -> Any:
    """Zeros around the signal of a slice: a Pad where the slice has no step, else a ScatterND along its places."""
    rank = len(shape)
    axis %= rank
    if step == 1 and isinstance(start, int) and start >= 0:
        size, stop = shape[axis], _plus(_size(s, axis), start)
        known = isinstance(size, int) and isinstance(stop, int)
        return _between_zeros(s, rank, axis, start, size - stop if known else op.Sub(size, stop))
    places = _cut(op.Range(0, shape[axis], 1), 0, start, end, step)
    order = [axis, *(i for i in range(rank) if i != axis)]
    empty = op.Expand(op.CastLike(0.0, s), [shape[i] for i in order])
    full = op.ScatterND(empty, op.Unsqueeze(places, [1]), op.Transpose(s, perm=order))
    return op.Transpose(full, perm=[order.index(i) for i in range(rank)])


@translates(aten.select_backward.default)
def select_backward(s: Any, shape: Sequence[Any], axis: int, place: int) -> Any:
    axis %= len(shape)
    row = op.Unsqueeze(s, [axis])
    rest = _plus(shape[axis], -place - 1 if place >= 0 else place)
    return _between_zeros(row, len(shape), axis, *((place, rest) if place >= 0 else (rest, -place - 1)))


@translates(aten.slice_scatter.default)
def slice_scatter(x: Any, source: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    first = 0 if start is None else start
    if step != 1 or not isinstance(first, int) or first < 0:
        return torchs(aten.slice_scatter.default)(x, source, axis, start, end, step)
    axis %= len(x.shape)
    after = _cut(x, axis, _plus(_size(source, axis), first), _LAST)
    return op.Concat(_cut(x, axis, 0, first), source, after, axis=axis)


@translates(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def max_pool_with_indices(
    x: Any, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """Torch's indices count within an image and channel; ONNX's over the whole tensor, so they are taken modulo."""
    value, places = _max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    known = all(isinstance(n, int) for n in x.shape[2:])
    area = math.prod(x.shape[2:]) if known else op.ReduceProd(op.Shape(x, start=2), keepdims=0)
    return [value, op.Mod(places, area)]


def _max_pool(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    n = len(x.shape) - 2
    kernel = each_of(kernel, n)
    return op.MaxPool(
        x, ceil_mode=int(ceil_mode), dilations=each_of(dilation, n), kernel_shape=kernel, pads=each_of(padding, n) * 2,
        strides=each_of(stride, n) if stride else kernel,
    )  # fmt: skip


@translates(aten.max_pool2d_with_indices_backward.default)
def max_pool_backward(
    s: Any, x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool, places: Any,
) -> Any:  # fmt: skip
    """At ONNX's own places, which the node of the forward pass has: each once where windows are apart, else summed."""
    places = _max_pool(x, kernel, stride, padding, dilation, ceil_mode)[1]
    kernel, stride = each_of(kernel, 2), each_of(stride or kernel, 2)
    if all(k <= step for k, step in zip(kernel, stride)) and each_of(dilation, 2) == [1, 1] and str(s.dtype) == "FLOAT":
        sizes = op.Shape(x)
        return op.MaxUnpool(s, places, sizes, kernel_shape=kernel, strides=stride)
    empty = op.Expand(op.CastLike(0.0, s), op.Unsqueeze(op.Size(x), [0]))
    summed = op.ScatterElements(empty, op.Reshape(places, [-1]), op.Reshape(s, [-1]), reduction="add")
    return op.Reshape(summed, op.Shape(x))


@translates(aten.threshold_backward.default)
def threshold_backward(s: Any, x: Any, threshold: float) -> Any:
    found = op.Where(op.LessOrEqual(x, float(threshold)), op.CastLike(0.0, s), s)
    if threshold == 0:
        found.producer().meta["passed"] = s, x
    return found


@translates(torch.ops.lfpgraph.epsilon_factor.default)
def epsilon_factor(s: Any, z: Any, epsilon: float, positive: bool) -> Any:
    """`s * abs(z) / (abs(z) + epsilon)` in the fewest passes over memory, right for infinite z; zero where z is.

    So where the signal comes from a relu with output z, it need not have been made zero there.
    """
    made_by = s.producer()
    passed, x = (made_by.meta.get("passed") if made_by is not None else None) or (None, None)
    s, dtype = passed if positive and x is z else s, s.dtype
    s, z = (op.Cast(t, to=1) if dtype in (10, 16) else t for t in (s, z))  # float32 for float16 and bfloat16
    found = op.Div(s, op.Add(op.Div(epsilon, z if positive else op.Abs(z)), 1.0))
    return op.Cast(found, to=dtype) if dtype in (10, 16) else found


@translates(aten.native_dropout.default)
def native_dropout(x: Any, p: float, train: bool | None = True) -> Any:
    if not train:
        return [x, op.Equal(x, x)]
    drawn = op.RandomUniformLike(x, seed=evaluator.default().next_seed())  # type: ignore[attr-defined]
    mask = op.GreaterOrEqual(drawn, op.CastLike(p, x))
    scaled = op.Mul(x, 1 / (1 - p) if p < 1 else 0.0)
    return [op.Mul(scaled, op.CastLike(mask, x)), mask]
