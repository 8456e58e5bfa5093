"""Convolutions of float64, and backward forms of convolutions, poolings and interpolation, in operations that ONNX has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..operators.translators import each_of
from ..registry import decomposes

log = logging.getLogger("lfpgraph")
aten = torch.ops.aten
_MANY = 16  # channels


@decomposes(aten.convolution.default)
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """In float32, since onnxruntime has none of float64 on a CPU; whole numbers below 2**24 are the same in it."""
    if x.dtype is not torch.float64:
        return NotImplemented  # type: ignore[no-any-return]
    log.info("onnxruntime has no convolutions of float64: those of this model are written in float32")
    given = (None if t is None else t.float() for t in (x, weight, bias))
    return aten.convolution.default(*given, *rest).double()  # type: ignore[no-any-return]


@decomposes(aten.convolution_backward.default)
def convolution_backward(
    s: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a convolution."""
    n = x.dim() - 2
    stride, padding, dilation = (each_of(values, n) for values in (stride, padding, dilation))
    found: list[Tensor | None] = [None, None, None]
    if mask[0] and transposed:
        found[0] = aten.convolution(s, weight, None, stride, padding, dilation, False, [0] * n, groups)
    elif mask[0]:
        rest = _left_over(s, x, weight, stride, padding, dilation)
        found[0] = aten.convolution(s, weight, None, stride, padding, dilation, True, rest, groups)
    if mask[1]:
        pair = (s, x) if transposed else (x, s)
        found[1] = _weight_signal(*pair, weight, stride, padding, dilation, groups)
    if mask[2]:
        found[2] = s.sum([0, *range(2, s.dim())])
    return tuple(found)


def _left_over(s: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """The output padding that gives the transposed convolution the size of x."""
    rest = []
    for i, (step, pad, spread) in enumerate(zip(stride, padding, dilation)):
        reach = spread * (weight.shape[i + 2] - 1) + 1
        left: Any = 0
        if step > 1:
            left = x.shape[i + 2] - ((s.shape[i + 2] - 1) * step - 2 * pad + reach)
        if not isinstance(left, int):
            left = 0 if left == 0 else int(left)
        rest.append(left)
    return rest


def _weight_signal(x: Tensor, s: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """A convolution of x with s, batch and channels swapped, stride and dilation swapped.

    For many channels, products of shifted images instead: half the time in onnxruntime (benchmarks/onnx_step.py).
    """
    places = x.shape[2:]
    channels = weight.shape[1]
    fixed = all(isinstance(n, int) for n in (*places, *s.shape[2:]))
    if groups == 1 and channels >= _MANY and x.dim() == 4 and fixed:
        return _shifted_products(x, s, weight, stride, padding, dilation)
    if groups == 1:
        images = x.transpose(0, 1)
    else:
        images = x.reshape(x.shape[0], groups, channels, *places).permute(2, 1, 0, *range(3, x.dim() + 1))
        images = images.reshape(channels, groups * x.shape[0], *places)
    n = x.dim() - 2
    found = aten.convolution(images, s.transpose(0, 1), None, dilation, padding, stride, False, [0] * n, groups)
    for axis in range(2, x.dim()):
        found = found.narrow(axis, 0, weight.shape[axis])
    return found.transpose(0, 1)


def _shifted_products(x: Tensor, s: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """For each place of the kernel the product of the signals with the part of x that it saw, channels last."""
    height, width = s.shape[2:]
    images = x.permute(0, 2, 3, 1)
    for axis, margin in enumerate(padding, 1):
        images = _widen(images, axis, margin, margin)
    count = s.shape[0] * height * width  # as -1 it would be compared with other sizes, which would fix the batch
    signals = s.transpose(0, 1).reshape(s.shape[1], count)
    parts = []
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            top, left = i * dilation[0], j * dilation[1]
            seen = images[:, top : top + (height - 1) * stride[0] + 1 : stride[0]]
            seen = seen[:, :, left : left + (width - 1) * stride[1] + 1 : stride[1]]
            parts.append(torch.mm(signals, seen.reshape(count, x.shape[1])))
    return torch.stack(parts, -1).reshape(weight.shape)


def _widen(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Zeros around x; `slice_backward`, since the fake form of `constant_pad_nd` would fix the batch."""
    if not before and not after:
        return x
    shape = list(x.shape)
    end = before + shape[axis]
    shape[axis] = end + after
    return aten.slice_backward(x, shape, axis, before, end, 1)


@decomposes(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    s: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, include: bool, divisor: int | None
) -> Tensor:
    """Each signal spread over its window: a depthwise transposed convolution with ones."""
    kernel = each_of(kernel, 2)
    stride, padding = each_of(stride, 2) if stride else kernel, each_of(padding, 2)
    height, width = x.shape[-2:]
    whole = [(size - k) % step == 0 for size, k, step in zip((height, width), kernel, stride)]
    flat = s.reshape(-1, 1, *s.shape[-2:])
    if padding == [0, 0] and not (ceil_mode and not all(whole)):
        scaled = flat * (1 / (divisor or kernel[0] * kernel[1]))
        if kernel == stride and all(whole):
            return aten.upsample_nearest2d(scaled, [height, width], None, None).reshape(x.shape)
    else:
        counts = _window_sizes(s.shape[-2:], (height, width), kernel, stride, padding, include, divisor)
        scaled = flat / torch.tensor(counts, dtype=s.dtype, device=s.device)
    ones = torch.ones((1, 1, *kernel), dtype=s.dtype, device=s.device)
    spread = aten.convolution(scaled, ones, None, stride, [0, 0], [1, 1], True, [0, 0], 1)
    for axis, (size, pad) in enumerate(zip((height, width), padding), 2):
        reach = spread.shape[axis]
        spread = _widen(spread, axis, 0, max(pad + size - reach, 0)).narrow(axis, pad, size)
    return spread.reshape(x.shape)


@decomposes(aten._adaptive_avg_pool2d.default)
def adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """The means of windows that may overlap and differ in size, as products with their shares; of images of a fixed size."""
    if not all(isinstance(n, int) for n in (*x.shape[-2:], *size)):
        return NotImplemented  # type: ignore[no-any-return]
    rows, columns = (_shares(n, out, x) for n, out in zip(x.shape[-2:], size))
    return rows @ (x @ columns.t())


@decomposes(aten._adaptive_avg_pool2d_backward.default)
def adaptive_average_backward(s: Tensor, x: Tensor) -> Tensor:
    if not all(isinstance(n, int) for n in (*x.shape[-2:], *s.shape[-2:])):
        return NotImplemented  # type: ignore[no-any-return]
    rows, columns = (_shares(n, out, s) for n, out in zip(x.shape[-2:], s.shape[-2:]))
    return rows.t() @ (s @ columns)


def _shares(size: int, out: int, like: Tensor) -> Tensor:
    """[out, size]: what each entry of an axis has in each of the windows that `adaptive_avg_pool` cuts it into."""
    found = [[0.0] * size for _ in range(out)]
    for i, row in enumerate(found):
        start, end = i * size // out, -(-(i + 1) * size // out)
        row[start:end] = [1 / (end - start)] * (end - start)
    return torch.tensor(found, dtype=like.dtype, device=like.device)


def _scaled_back(s: Tensor, shape: Sequence[int], align: bool | None, scales: Sequence[Any]) -> Tensor:
    """Each signal goes to the entries that its own was made of; `align` is None where that is the nearest one."""
    for axis, (m, scale) in enumerate(zip(shape[2:], [*scales, None, None, None]), 2):
        n = s.shape[axis]
        step = (m - 1) / max(n - 1, 1) if align else 1 / scale if scale else m / n
        at, entries = (torch.arange(k, dtype=s.dtype, device=s.device) for k in (n, m))
        at = (at * step).floor() if align is None else at * step if align else (at + 0.5) * step - 0.5
        shares = (1 - (at.clamp(0, m - 1).unsqueeze(1) - entries).abs()).clamp(min=0)
        s = (s.movedim(axis, -1) @ shares).movedim(-1, axis)
    return s


for _dim, _name in enumerate(("linear", "bilinear", "trilinear"), 1):
    _near, _linear = (getattr(aten, f"upsample_{n}{_dim}d_backward").default for n in ("nearest", _name))
    decomposes(_near)(lambda s, size, shape, *scales: _scaled_back(s, shape, None, scales))
    decomposes(_linear)(lambda s, size, shape, align, *scales: _scaled_back(s, shape, align, scales))


def _window_sizes(out: Any, size: Any, kernel: Any, stride: Any, padding: Any, include: bool, divisor: Any) -> Any:
    """What each window of an average pooling divides by."""
    sides = []
    for n, length, k, step, pad in zip(out, size, kernel, stride, padding):
        starts = [i * step - pad for i in range(int(n))]
        ends = [min(start + k, length + pad) for start in starts]
        if not include:
            starts, ends = [max(start, 0) for start in starts], [min(end, length) for end in ends]
        sides.append([end - start for start, end in zip(starts, ends)])
    return [[float(divisor or a * b) for b in sides[1]] for a in sides[0]]
