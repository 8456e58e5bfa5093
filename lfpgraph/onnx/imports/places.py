"""ONNX operators that look up, write at places or make tensors, in torch; spectra of series."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import LARGEST, Known, Node, dtype_of, imports, known, modest, numbers, tensor_of


@imports("Gather", known=True)
def gather(node: Node, x: Any, index: Any) -> Any:
    axis = node.get("axis", 0)
    if isinstance(x, Known) and isinstance(index, Known):
        return known(x.items.take(index.items.astype(int), axis), x.dtype)
    x = tensor_of(x)
    if isinstance(index, Known) and index.scalar:
        return x.select(axis, int(index.items.item()))
    index = tensor_of(index)
    if axis % x.dim() == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(_positive(index, x.shape[0]), x)
    flat = torch.index_select(x, axis, _positive(index.reshape(-1), x.shape[axis]))
    axis %= x.dim()
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


_REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(index: Tensor, size: Any) -> Tensor:
    return torch.where(index < 0, index + size, index)


@imports("GatherElements")
def gather_elements(node: Node, x: Tensor, index: Any) -> Any:
    axis = node.get("axis", 0)
    return torch.gather(x, axis, _positive(index, x.shape[axis]).long())


@imports("GatherND")
def gather_nd(node: Node, x: Tensor, index: Any) -> Any:
    batch = node.get("batch_dims", 0)
    lead = [torch.arange(n).reshape(n, *[1] * (index.dim() - 2 - axis)) for axis, n in enumerate(x.shape[:batch])]
    return x[tuple([*lead, *(index[..., i] for i in range(index.shape[-1]))])]


@imports("ScatterND")
def scatter_nd(node: Node, x: Tensor, index: Any, updates: Tensor) -> Any:
    how = node.get("reduction", "none")
    if how in ("none", "add"):
        return x.index_put(tuple(index[..., i] for i in range(index.shape[-1])), updates, accumulate=how == "add")
    if how not in _REDUCED:
        raise OnnxError(f"ScatterND {node.name!r} with reduction {how!r} is not supported")
    depth = index.shape[-1]
    rows = sum(_positive(index[..., i], x.shape[i]) * math.prod(x.shape[i + 1 : depth]) for i in range(depth))
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    where = rows.reshape(-1, 1).expand(-1, flat.shape[1])  # type: ignore[union-attr]
    return torch.scatter_reduce(flat, 0, where, updates.reshape(where.shape), _REDUCED[how]).reshape(x.shape)


@imports("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, index: Any, updates: Tensor) -> Any:
    axis, how = node.get("axis", 0), node.get("reduction", "none")
    index = _positive(index, x.shape[axis]).long()
    if how == "none":
        return x.scatter(axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _REDUCED[how])


@imports("OneHot", known=True)
def one_hot(node: Node, index: Tensor, depth: Any, values: Tensor) -> Any:
    classes = modest(node, [int(numbers(node, depth)[0])])[0]
    values = tensor_of(values)
    index = _positive(tensor_of(index), classes)
    found = torch.where(index.unsqueeze(-1) == torch.arange(classes), values[1], values[0])
    return found.movedim(-1, node.get("axis", -1))


@imports("TopK", known=True)
def topk(node: Node, x: Tensor, k: Any) -> Any:
    count = int(numbers(node, k)[0])
    return tuple(torch.topk(x, count, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1))))


@imports("ConstantOfShape", known=True)
def constant_of_shape(node: Node, wanted: Any) -> Any:
    items = modest(node, numbers(node, wanted))
    value = node.get("value", torch.zeros(1))
    if value.dtype == torch.int64 and all(isinstance(n, int) for n in items) and math.prod(items) <= 64:
        return Known(np.full(items, int(value)).tolist())
    return torch.full(items, value.reshape(()).item(), dtype=value.dtype)


@imports("Range", known=True)
def range_(node: Node, start: Any, end: Any, step: Any) -> Any:
    first, last, by = (numbers(node, n)[0] for n in (start, end, step))
    dtype = tensor_of(start).dtype
    if all(isinstance(n, int | float) for n in (first, last, by)):
        modest(node, [max(0, int((last - first) / by) + 1)] if by else [LARGEST + 1])
    return torch.arange(first, last, by, dtype=dtype)


@imports("EyeLike")
def eye_like(node: Node, x: Tensor) -> Any:
    dtype = dtype_of(node.get("dtype")) if node.get("dtype") else x.dtype
    k, (rows, columns) = node.get("k", 0), x.shape
    return (torch.arange(columns) == torch.arange(rows).unsqueeze(1) + k).to(dtype)


@imports("BitCast")
def bit_cast(node: Node, x: Tensor) -> Any:
    dtype = dtype_of(node.get("to"))
    if dtype.itemsize != x.dtype.itemsize:
        raise OnnxError(f"BitCast {node.name!r} from {x.dtype} to {dtype}, of another size, is not supported")
    return x.contiguous().view(dtype)


@imports("Compress")
def compress(node: Node, x: Tensor, chosen: Tensor) -> Any:
    axis = node.get("axis")
    places = chosen.nonzero().squeeze(1)
    return x.flatten()[places] if axis is None else x.index_select(axis, places)


@imports("Col2Im", known=True)
def col2im(node: Node, x: Any, image: Any, block: Any) -> Any:
    size, kernel = modest(node, numbers(node, image)), numbers(node, block)
    n = len(size)
    pads = node.get("pads") or [0] * (2 * n)
    if n != 2 or pads[:n] != pads[n:]:
        raise OnnxError(f"Col2Im {node.name!r} over {n} dimensions with pads {pads} is not supported")
    dilation, stride = node.get("dilations", [1] * n), node.get("strides", [1] * n)
    return F.fold(tensor_of(x), tuple(size), tuple(kernel), tuple(dilation), tuple(pads[:n]), tuple(stride))


_WINDOWS: dict[str, Any] = {
    "BlackmanWindow": torch.blackman_window,
    "HammingWindow": partial(torch.hamming_window, alpha=25 / 46, beta=21 / 46),
    "HannWindow": torch.hann_window,
}


@imports(*_WINDOWS, known=True)
def window(node: Node, size: Any) -> Any:
    (length,) = modest(node, [int(numbers(node, size)[0])])
    found = _WINDOWS[node.kind](length, periodic=bool(node.get("periodic", 1)), dtype=torch.float64)
    return found.to(dtype_of(node.get("output_datatype", 1)))


@imports("DFT", known=True)
def dft(node: Node, x: Any, length: Any = None, axis: Any = None) -> Any:
    """Of real numbers [..., 1] or complex ones [..., 2]."""
    x = tensor_of(x)
    at = (node.get("axis", 1) if node.version < 20 else -2) if axis is None else int(numbers(node, axis)[0])
    n = None if length is None else int(numbers(node, length)[0])
    modest(node, [*x.shape, n or 1])
    z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
    half, at = bool(node.get("onesided", 0)), at % x.dim()
    if node.get("inverse", 0):
        return torch.fft.irfft(z, n, at).unsqueeze(-1) if half else torch.view_as_real(torch.fft.ifft(z, n, at))
    return torch.view_as_real((torch.fft.rfft if half else torch.fft.fft)(z, n, at))


@imports("STFT", known=True)
def stft(node: Node, x: Any, step: Any, weights: Any = None, length: Any = None) -> Any:
    x, weights = tensor_of(x), tensor_of(weights)
    n = len(weights) if length is None else int(numbers(node, length)[0])
    real = x if x.dim() == 2 else x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    frames = real.unfold(1, n, int(numbers(node, step)[0]))
    frames = frames if weights is None else frames * weights
    half = bool(node.get("onesided", 1)) and not frames.is_complex()
    return torch.view_as_real((torch.fft.rfft if half else torch.fft.fft)(frames))
