"""The elementwise formulas of feedback for real tensors, in blocks that stay in the processor's cache.

On a CPU each formula would be three or four passes over memory, through tensors just allocated; in blocks it is one. On
other devices, and for small tensors, the plain operations run. Results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["add_rows", "epsilon_factor", "identity_signal", "rectified_factor", "scale_by_size", "scaled_product"]

aten = torch.ops.aten
_BLOCK = 1 << 17  # elements; scratch, block and operands fit into a megabyte or two of cache

_BAND = 1 << 19  # elements of a band of rows of a product
_SHORT = 512  # rows summed over, up to which a product waits for memory


def scale_by_size(s: Tensor, w: Tensor) -> Tensor:
    """`s * abs(w)`, written over s."""
    for a, b, scratch in _blocks(s, w):
        a.mul_(torch.abs(b, out=scratch))
    return s


def scaled_product(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """`(a @ b) * abs(w)`: rows [rows, n] times [n, columns], scaled while they are in the cache.

    Worth it where the product is bound by memory, which is where n is small.
    """
    rows, columns = w.shape
    step = max(64, _BAND // max(columns, 1))
    if w.device.type != "cpu" or b.shape[0] > _SHORT or rows <= step or not w.is_contiguous():
        return scale_by_size(torch.mm(a, b), w)
    out = torch.empty((rows, columns), dtype=a.dtype)
    scratch = torch.empty((step, columns), dtype=w.dtype)
    for start in range(0, rows, step):
        band = torch.mm(a[start : start + step], b, out=out[start : start + step])
        band.mul_(torch.abs(w[start : start + step], out=scratch[: band.shape[0]]))
    return out


def add_rows(total: Tensor, s: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool) -> Tensor:
    """`total + embedding_dense_backward(s, indices, ...)`, written over total [rows, n], without a second such matrix."""
    if total.device.type != "cpu" or by_frequency:
        return total.add_(aten.embedding_dense_backward.default(s, indices, rows, padding, by_frequency))
    places, terms = indices.reshape(-1), s.reshape(-1, s.shape[-1])
    if padding >= 0:
        terms = terms.masked_fill((places == padding).unsqueeze(1), 0)
    return total.index_add_(0, places, terms)


def epsilon_factor(s: Tensor, z: Tensor, epsilon: float, positive: bool, write: bool) -> Tensor:
    """`s - s * epsilon / (abs(z) + epsilon)`, with `write` over s. `positive`: z has no negative entry."""
    out = s if write else torch.empty_like(s)
    for a, b, c, scratch in _blocks(s, z, out):
        size = torch.add(b, epsilon, out=scratch) if positive else torch.abs(b, out=scratch).add_(epsilon)
        torch.addcdiv(a, a, size, value=-epsilon, out=c)
    return out


def rectified_factor(s: Tensor, z: Tensor, epsilon: float, write: bool) -> Tensor:
    """The epsilon factor behind a relu with output z: `epsilon_factor` of s where z is positive, zero elsewhere."""
    out = s if write else torch.empty_like(s)
    for a, b, c, scratch in _blocks(s, z, out):
        aten.threshold_backward.grad_input(a, b, 0, grad_input=c)
        torch.addcdiv(c, c, torch.add(b, epsilon, out=scratch), value=-epsilon, out=c)
    return out


def identity_signal(s: Tensor, x: Tensor, z: Tensor, epsilon: float, write: bool) -> Tensor:
    """`s * z / (x + epsilon * sign(x))` with sign(0) = 1, with `write` over s."""
    unit = torch.full((), epsilon, dtype=x.dtype, device=x.device)
    out = s if write else torch.empty_like(s)
    for a, b, c, d, scratch in _blocks(s, x, z, out):
        size = torch.copysign(unit, torch.add(b, 0.0, out=scratch), out=scratch).add_(b)
        torch.mul(a, c, out=d).div_(size)
    return out


def _blocks(*tensors: Tensor) -> Iterable[Sequence[Any]]:
    """The tensors' common blocks and a scratch for each; the whole and None where blocks are of no use or do not line up."""
    first, whole = tensors[0], [(*tensors, None)]
    count = first.numel()
    if count <= _BLOCK or first.device.type != "cpu":
        return whole
    layout = torch.contiguous_format if first.is_contiguous() else torch.channels_last
    for t in tensors:
        same = t.dtype == first.dtype and t.shape == first.shape
        if not same or (layout is torch.channels_last and t.dim() != 4) or not t.is_contiguous(memory_format=layout):
            return whole
    return _cut(tensors, count)


def _cut(tensors: tuple[Tensor, ...], count: int) -> Iterator[Sequence[Any]]:
    flat = [t.as_strided((count,), (1,)) for t in tensors]
    scratch = torch.empty(_BLOCK, dtype=tensors[0].dtype)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        block = [t.narrow(0, start, size) for t in flat]
        block.append(scratch if size == _BLOCK else scratch.narrow(0, 0, size))
        yield block
