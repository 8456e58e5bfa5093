"""ONNX operators that move, cut, join, fill and look up, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OnnxError
from .imports import Known, Node, imports, numbers, tensor_of
from .imports_elementwise import dtype_of

LARGEST = 2**29  # elements of one tensor; a few numbers in a file can ask for any size


def modest(node: Node, shape: list[Any]) -> list[Any]:
    """A shape that a file asks for, refused where it is absurd."""
    count = 1
    for n in shape:
        if isinstance(n, int):
            if n < 0:
                raise OnnxError(f"{node.kind} {node.name!r} asks for a negative size: {shape}")
            count *= n
    if count > LARGEST:
        raise OnnxError(f"{node.kind} {node.name!r} asks for {count:.3g} elements, more than {LARGEST:.3g}")
    return shape


@imports("Shape")
def shape(node: Node, x: Any) -> Any:
    items = list(x.shape)
    return Known(items[slice(node.get("start", 0), node.get("end"))])


@imports("Size")
def size(node: Node, x: Any) -> Any:
    return Known([x.numel()], scalar=True)


@imports("Reshape", known=True)
def reshape(node: Node, x: Any, wanted: Any = None) -> Any:
    items = node.get("shape") if wanted is None else numbers(node, wanted)
    if isinstance(x, Known):
        if len(x.items) == 1 and items in ([], [1], [-1]):
            return Known(x.items, not items, x.dtype)
        x = tensor_of(x)
    if not node.get("allowzero", 0):
        items = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(items)]
    return x.reshape(items)


@imports("Flatten")
def flatten(node: Node, x: Tensor) -> Any:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    first = 1
    for n in x.shape[:axis]:
        first = first * n
    return x.reshape(first, -1) if x.numel() else x.reshape(first, x.shape[axis:].numel())


@imports("Transpose")
def transpose(node: Node, x: Tensor) -> Any:
    return x.permute(node.get("perm") or list(range(x.dim()))[::-1])


def axes_of(node: Node, given: Any) -> list[int] | None:
    """Axes, from the input that newer opsets have or the attribute of older ones."""
    found = node.get("axes") if given is None else numbers(node, given)
    return None if found is None else [int(a) for a in found]


@imports("Squeeze", known=True)
def squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    if isinstance(x, Known):
        return Known(x.items, len(x.items) == 1, x.dtype)
    chosen = axes_of(node, axes)
    if chosen is None:
        return x.squeeze()
    return x.squeeze(tuple(chosen))


@imports("Unsqueeze", known=True)
def unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = axes_of(node, axes) or []
    if isinstance(x, Known) and x.scalar and chosen == [0]:
        return Known(x.items, False, x.dtype)
    x = tensor_of(x)
    rank = x.dim() + len(chosen)
    for axis in sorted(a % rank for a in chosen):
        x = x.unsqueeze(axis)
    return x


@imports("Concat", known=True)
def concat(node: Node, *items: Any) -> Any:
    if any(isinstance(x, Known) for x in items):
        if all(isinstance(x, Known) and not x.scalar for x in items):
            return Known([n for x in items for n in x.items], False, items[0].dtype)
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
    if isinstance(x, Known) and not x.scalar and len(first) == 1:
        return Known(x.items[slice(int(first[0]), int(last[0]), int(stride[0]))], False, x.dtype)
    x = tensor_of(x)
    for axis, a, b, step in zip(chosen if chosen is not None else range(len(first)), first, last, stride):
        if step < 0:
            x, a, b, step = _reversed(x, axis, a, b, step)
        x = torch.ops.aten.slice.Tensor(x, axis, a, min(b, 2**62) if isinstance(b, int) else b, step)
    return x


def _reversed(x: Tensor, axis: int, start: int, end: int, step: int) -> Any:
    """The same cut of the flipped axis."""
    n = x.shape[axis]
    start = min(start + n if start < 0 else start, n - 1)
    end = max(end + n if end < 0 else end, -1)
    return x.flip(axis), n - 1 - start, max(n - 1 - end, 0), -step


@imports("Split", known=True)
def split(node: Node, x: Tensor, sizes: Any = None) -> Any:
    axis = node.get("axis", 0)
    given = node.get("split") if sizes is None else numbers(node, sizes)
    if given is None:
        count = node.get("num_outputs") or node.outputs
        each = -(-x.shape[axis] // count)
        given = [each] * (count - 1)
        given.append(x.shape[axis] - each * (count - 1))
    found = torch.split(x, given, axis)
    return tuple(found) if node.outputs > 1 else found[0]


@imports("Gather", known=True)
def gather(node: Node, x: Any, index: Any) -> Any:
    axis = node.get("axis", 0)
    if isinstance(x, Known) and isinstance(index, Known) and not x.scalar:
        return Known([x.items[int(i)] for i in index.items], index.scalar, x.dtype)
    x = tensor_of(x)
    if isinstance(index, Known) and index.scalar:
        return x.select(axis, int(index.items[0]))
    index = tensor_of(index)
    if axis % x.dim() == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(_positive(index, x.shape[0]), x)
    flat = torch.index_select(x, axis, _positive(index.reshape(-1), x.shape[axis]))
    axis %= x.dim()
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _positive(index: Tensor, size: Any) -> Tensor:
    return torch.where(index < 0, index + size, index)


@imports("GatherElements")
def gather_elements(node: Node, x: Tensor, index: Any) -> Any:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _positive(index, x.shape[axis]).long())


@imports("GatherND")
def gather_nd(node: Node, x: Tensor, index: Any) -> Any:
    batch = node.get("batch_dims", 0)
    places: list[Any] = [index[..., i] for i in range(index.shape[-1])]
    lead = []
    for axis in range(batch):
        view = [1] * (index.dim() - 1)
        view[axis] = x.shape[axis]
        lead.append(torch.arange(x.shape[axis]).reshape(view))
    return x[tuple([*lead, *places])]


@imports("ScatterND")
def scatter_nd(node: Node, x: Tensor, index: Any, updates: Tensor) -> Any:
    how = node.get("reduction", "none")
    if how not in ("none", "add"):
        raise OnnxError(f"ScatterND {node.name!r} with reduction {how!r} is not supported")
    return x.index_put(tuple(index[..., i] for i in range(index.shape[-1])), updates, accumulate=how == "add")


@imports("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, index: Any, updates: Tensor) -> Any:
    axis, how = node.get("axis", 0), node.get("reduction", "none")
    index = _positive(index, x.shape[axis]).long()
    if how == "none":
        return x.scatter(axis, index, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, index, updates, names[how])


@imports("Constant")
def constant(node: Node) -> Any:
    raise OnnxError(f"Constant {node.name!r} has no tensor")


@imports("ConstantOfShape", known=True)
def constant_of_shape(node: Node, wanted: Any) -> Any:
    items = modest(node, numbers(node, wanted))
    value = node.get("value")
    if value is None:
        return torch.zeros(items)
    if value.dtype == torch.int64 and len(items) == 1 and isinstance(items[0], int) and items[0] <= 64:
        return Known([int(value)] * items[0])
    return torch.full(items, value.reshape(()).item(), dtype=value.dtype)


@imports("Range", known=True)
def range_(node: Node, start: Any, end: Any, step: Any) -> Any:
    first, last, by = (numbers(node, n)[0] for n in (start, end, step))
    dtype = tensor_of(start).dtype
    if all(isinstance(n, int | float) for n in (first, last, by)):
        modest(node, [max(0, int((last - first) / by) + 1)] if by else [LARGEST + 1])
    return torch.arange(first, last, by, dtype=dtype)


@imports("Pad", known=True)
def pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    widths = node.get("pads") if pads is None else numbers(node, pads)
    mode = node.get("mode", "constant")
    chosen = list(range(x.dim())) if axes is None else [a % x.dim() for a in numbers(node, axes)]
    n = len(chosen)
    before, after = [0] * x.dim(), [0] * x.dim()
    for axis, a, b in zip(chosen, widths[:n], widths[n:]):
        before[axis], after[axis] = a, b
    modest(node, [size + a + b for size, a, b in zip(x.shape, before, after)])
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else numbers(node, value)[0]
        flat = [w for pair in reversed(list(zip(before, after))) for w in pair]
        return F.pad(x, flat, value=fill)
    for axis in range(x.dim()):  # reflect, edge and wrap, axis by axis, by looking up
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
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


@imports("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Any:
    if node.get("mode", "DCR") != "DCR":
        raise OnnxError(f"SpaceToDepth {node.name!r} of mode {node.get('mode')!r} is not supported")
    n, c, h, w = x.shape
    b = node.get("blocksize")
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


@imports("OneHot", known=True)
def one_hot(node: Node, index: Tensor, depth: Any, values: Tensor) -> Any:
    classes = modest(node, [int(numbers(node, depth)[0])])[0]
    values = tensor_of(values)
    index = _positive(tensor_of(index), classes)
    found = torch.where(index.unsqueeze(-1) == torch.arange(classes), values[1], values[0])
    axis = node.get("axis", -1)
    return found.movedim(-1, axis)


@imports("EyeLike")
def eye_like(node: Node, x: Tensor) -> Any:
    dtype = dtype_of(node.get("dtype")) if node.get("dtype") else x.dtype
    k, (rows, columns) = node.get("k", 0), x.shape
    return (torch.arange(columns) == torch.arange(rows).unsqueeze(1) + k).to(dtype)


@imports("NonZero")
def nonzero(node: Node, x: Tensor) -> Any:
    return torch.nonzero(x).t()


@imports("TopK", known=True)
def topk(node: Node, x: Tensor, k: Any) -> Any:
    count = int(numbers(node, k)[0])
    return tuple(torch.topk(x, count, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1))))


@imports("ReverseSequence")
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Any:
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    moved = x.movedim((time, batch), (0, 1))
    steps = torch.arange(moved.shape[0]).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    found = moved[places, torch.arange(moved.shape[1])]
    return found.movedim((0, 1), (time, batch))
