"""ONNX operators that move, cut, join and pad tensors or tell their shape, in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Known, Node, axes_of, imports, known, modest, numbers, pad_widths, tensor_of


@imports("Shape")
def shape(node: Node, x: Any) -> Any:
    return Known(list(x.shape)[slice(node.get("start", 0), node.get("end"))])


@imports("Size")
def size(node: Node, x: Any) -> Any:
    return Known(x.numel())


@imports("Reshape", known=True)
def reshape(node: Node, x: Any, wanted: Any = None) -> Any:
    items = node.get("shape") if wanted is None else numbers(node, wanted)
    sizes = x.items.shape if isinstance(x, Known) else x.shape
    if not node.get("allowzero", 0):
        items = [sizes[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(items)]
    return Known(x.items.reshape(items), x.dtype) if isinstance(x, Known) else x.reshape(items)


@imports("Flatten")
def flatten(node: Node, x: Tensor) -> Any:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    first = math.prod(x.shape[:axis])
    return x.reshape(first, -1) if x.numel() else x.reshape(first, x.shape[axis:].numel())


@imports("Transpose", known=True)
def transpose(node: Node, x: Any) -> Any:
    if isinstance(x, Known):
        return Known(x.items.transpose(node.get("perm")), x.dtype)
    return x.permute(node.get("perm") or list(range(x.dim()))[::-1])


@imports("Squeeze", known=True)
def squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = axes_of(node, axes)
    if isinstance(x, Known):
        return Known(x.items.squeeze(None if chosen is None else tuple(chosen)), x.dtype)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@imports("Unsqueeze", known=True)
def unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = axes_of(node, axes) or []
    if isinstance(x, Known):
        return Known(np.expand_dims(x.items, tuple(chosen)), x.dtype)
    rank = x.dim() + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


@imports("Concat", known=True)
def concat(node: Node, *items: Any) -> Any:
    if all(isinstance(x, Known) for x in items):
        return known(np.concatenate([x.items for x in items], node.get("axis")), items[0].dtype)
    return torch.cat([tensor_of(x) for x in items], node.get("axis"))


@imports("Expand", known=True)
def expand(node: Node, x: Any, wanted: Any) -> Any:
    x, items = tensor_of(x), numbers(node, wanted)
    modest(node, items)
    items = [1] * (x.dim() - len(items)) + items
    own = [1] * (len(items) - x.dim()) + list(x.shape)
    return x.expand([a if isinstance(b, int) and b == 1 else b for a, b in zip(own, items)])


@imports("Tile", known=True)
def tile(node: Node, x: Any, times: Any) -> Any:
    x, counts = tensor_of(x), numbers(node, times)
    modest(node, [n * c for n, c in zip(x.shape, counts)])
    return x.repeat(counts)


@imports("Slice", known=True)
def slice_(node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first = node.get("starts") if starts is None else numbers(node, starts)
    last = node.get("ends") if ends is None else numbers(node, ends)
    chosen = axes_of(node, axes)
    stride = [1] * len(first) if steps is None else numbers(node, steps)
    for axis, a, b, step in zip(chosen if chosen is not None else range(len(first)), first, last, stride):
        if isinstance(x, Known):
            x = Known(x.items.swapaxes(0, axis)[int(a) : int(b) : int(step)].swapaxes(0, axis), x.dtype)
            continue
        if step < 0:
            x, a, b, step = _reversed(x, axis, a, b, step)
        x = torch.ops.aten.slice.Tensor(x, axis, a, min(b, 2**62) if isinstance(b, int) else b, step)
    return x


def _reversed(x: Tensor, axis: int, start: int, end: int, step: int) -> Any:
    """A slice with a negative step as one of the flipped axis, with a positive step."""
    n = x.shape[axis]
    start = min(start + n if start < 0 else start, n - 1)
    end = max(end + n if end < 0 else end, -1)
    return x.flip(axis), n - 1 - start, max(n - 1 - end, 0), -step


@imports("Split", known=True)
def split(node: Node, x: Any, sizes: Any = None) -> Any:
    x, axis = tensor_of(x), node.get("axis", 0)
    given = node.get("split") if sizes is None else numbers(node, sizes)
    if given is None:
        count = node.get("num_outputs") or node.outputs
        modest(node, [count, 2**15])  # a part costs more than its entries
        each = -(-x.shape[axis] // count)
        given = [*[each] * (count - 1), x.shape[axis] - each * (count - 1)]
    found = torch.split(x, given, axis)
    return tuple(found) if node.outputs > 1 else found[0]


@imports("Pad", known=True)
def pad(node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    x, widths = tensor_of(x), node.get("pads") if pads is None else numbers(node, pads)
    mode = node.get("mode", "constant")
    chosen = list(range(x.dim())) if axes is None else [a % x.dim() for a in numbers(node, axes)]
    n = len(chosen)
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, a, b in zip(chosen, widths[:n], widths[n:]):
        before[axis], after[axis] = a, b
    modest(node, [size + a + b for size, a, b in zip(x.shape, before, after)])
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else numbers(node, value)[0]
        return F.pad(x, pad_widths(before, after), value=fill)
    for axis in range(x.dim()):  # reflect, edge and wrap: each axis looks up its own entries
        if before[axis] or after[axis]:
            x = torch.index_select(x, axis, _folded(mode, x.shape[axis], before[axis], after[axis]))
    return x


def _folded(mode: str, size: int, before: int, after: int) -> Tensor:
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if mode != "reflect":
        raise OnnxError(f"padding of mode {mode!r} is not known")
    period = max(2 * (size - 1), 1)
    places = places % period
    return torch.where(places >= size, period - places, places)


@imports("Trilu", known=True)
def trilu(node: Node, x: Tensor, k: Any = None) -> Any:
    diagonal = 0 if k is None else int(numbers(node, k)[0])
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


@imports("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Any:
    (n, c, h, w), b = x.shape, node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


@imports("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Any:
    (n, c, h, w), b = x.shape, node.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b**2, h // b, w // b)


@imports("ReverseSequence")
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Any:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    moved = x.movedim((time, batch), (0, 1))
    steps = torch.arange(moved.shape[0]).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return moved[places, torch.arange(moved.shape[1])].movedim((0, 1), (time, batch))
