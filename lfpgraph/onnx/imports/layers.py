"""ONNX operators with weights, poolings and resampling, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, imports, modest, numbers, pad_widths


@imports("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Any = None) -> Any:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.t() if node.get("transA", 0) else a
    if alpha == 1 and beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b if node.get("transB", 0) else b.t(), c)
    product = alpha * (a @ (b.t() if node.get("transB", 0) else b))
    return product if c is None else product + beta * c


@imports("Einsum")
def einsum(node: Node, *items: Tensor) -> Any:
    return torch.einsum(node.get("equation").replace(" ", ""), *items)


class _Windows:
    """How a convolution or pooling moves over the places of x [n, c, ...], by its node's attributes."""

    def __init__(self, node: Node, x: Tensor, kernel: list[int]) -> None:
        self.rank = n = x.dim() - 2
        self.kernel = kernel
        self.stride, self.dilation = node.get("strides", [1] * n), node.get("dilations", [1] * n)
        self.before, self.after = _pads(node, x, kernel, self.stride, self.dilation)

    @property
    def even(self) -> bool:
        """Whether every axis is padded as much after it as before it; torch's own functions take such padding."""
        return bool(self.before == self.after)

    def padded(self, x: Tensor, value: float = 0.0) -> Tensor:
        return F.pad(x, pad_widths(self.before, self.after), value=value)


def _pads(node: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Any:
    """Padding before and after each spatial axis."""
    n = x.dim() - 2
    how = node.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, step, spread in zip(x.shape[2:], kernel, stride, dilation):
            total = max((-(-size // step) - 1) * step + spread * (k - 1) + 1 - size, 0)
            less = total // 2
            before.append(less if how == "SAME_UPPER" else total - less)
            after.append(total - before[-1])
        return before, after
    pads = [0] * (2 * n) if how == "VALID" else node.get("pads") or [0] * (2 * n)
    return list(pads[:n]), list(pads[n:])


@imports("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    windows = _Windows(node, x, list(weight.shape[2:]))
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(windows.rank)
    if function is None:
        raise OnnxError(f"Conv {node.name!r} over {windows.rank} dimensions is not supported")
    padding = windows.before
    if not windows.even:
        x, padding = windows.padded(x), [0] * windows.rank
    return function(x, weight, bias, windows.stride, padding, windows.dilation, node.get("group", 1))


@imports("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    n = x.dim() - 2
    stride, dilation = node.get("strides", [1] * n), node.get("dilations", [1] * n)
    extra = node.get("output_padding", [0] * n)
    kernel = list(weight.shape[2:])
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[n]
    full = function(x, weight, bias, stride, 0, 0, node.get("group", 1), dilation)
    wanted, how = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    pads = node.get("pads") or [0] * (2 * n)
    for i in range(n):
        reach = (x.shape[i + 2] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 + extra[i]
        if wanted is not None or how.startswith("SAME"):
            size = wanted[i] if wanted is not None else x.shape[i + 2] * stride[i]
            total = max(reach - size, 0)
            before = total // 2 if how == "SAME_UPPER" else total - total // 2
        else:
            before, size = pads[i], reach - pads[i] - pads[n + i]
        axis = i + 2
        if full.shape[axis] < before + size:
            short = before + size - full.shape[axis]
            if bias is None:
                full = F.pad(full, [0, 0] * (n - 1 - i) + [0, short])
            else:
                more = bias.reshape(1, -1, *[1] * n).expand(*full.shape[:axis], short, *full.shape[axis + 1 :])
                full = torch.cat([full, more], axis)
        full = full.narrow(axis, before, size)
    return full


@imports("MaxPool")
def max_pool(node: Node, x: Tensor) -> Any:
    windows = _Windows(node, x, node.get("kernel_shape"))
    n, kernel, padding = windows.rank, windows.kernel, windows.before
    ceil = bool(node.get("ceil_mode", 0))
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
    if node.outputs > 1:
        if not windows.even or node.get("storage_order", 0):
            raise OnnxError(f"MaxPool {node.name!r} with places and uneven padding is not supported")
        value, places = function(x, kernel, windows.stride, padding, windows.dilation, ceil, True)
        area = 1
        for size in x.shape[2:]:
            area = area * size
        planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * n)
        return value, places + planes * area
    if not windows.even or any(2 * p > k for p, k in zip(padding, kernel)):
        lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, padding = windows.padded(x, lowest), [0] * n
    if not x.is_floating_point():
        return function(x.to(torch.float64), kernel, windows.stride, padding, windows.dilation, ceil).to(x.dtype)
    return function(x, kernel, windows.stride, padding, windows.dilation, ceil)


@imports("AveragePool")
def average_pool(node: Node, x: Tensor) -> Any:
    windows = _Windows(node, x, node.get("kernel_shape"))
    kernel, stride = windows.kernel, windows.stride
    include, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    if any(d != 1 for d in windows.dilation):
        raise OnnxError(f"AveragePool {node.name!r} with dilation is not supported")
    function: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[windows.rank]
    if windows.even and all(2 * p <= k for p, k in zip(windows.before, kernel)):
        return function(x, kernel, stride, windows.before, ceil, include)
    if include and not ceil:
        return function(windows.padded(x), kernel, stride)
    counts = windows.padded(torch.ones_like(x[:1, :1]), 1.0 if include else 0.0)
    return function(windows.padded(x), kernel, stride, 0, ceil) / function(counts, kernel, stride, 0, ceil)


@imports("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, x: Tensor) -> Any:
    axes = list(range(2, x.dim()))
    return x.mean(axes, keepdim=True) if node.kind == "GlobalAveragePool" else x.amax(axes, keepdim=True)


@imports("Resize", known=True)
def resize(node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    """Only what torch's interpolation can do: nearest asymmetric, linear and cubic by half pixels or aligned corners."""
    place, mode = node.get("coordinate_transformation_mode", "half_pixel"), node.get("mode", "nearest")
    chosen = [a % x.dim() for a in node.get("axes", range(x.dim()))]
    factors = [] if scales is None else numbers(node, scales)
    wanted = list(x.shape)
    for axis, n in zip(chosen, numbers(node, sizes) if not factors else factors):
        wanted[axis] = int(x.shape[axis] * n) if factors else n
    corners = place == "align_corners"
    even = all(n == int(n) or (size * n == int(size * n) and mode == "nearest") for size, n in zip(x.shape, factors))
    usual = place in ("half_pixel", "pytorch_half_pixel", "align_corners") and (place[0] != "p" or 1 not in wanted[2:])
    nearest = mode == "nearest" and place == "asymmetric" and node.get("nearest_mode") == "floor"
    fits = (nearest or (mode in ("linear", "cubic") and usual)) and even and wanted[:2] == list(x.shape[:2])
    plain = {"antialias": 0, "cubic_coeff_a": -0.75, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}
    fits = fits and all(node.get(name, value) == value for name, value in plain.items())
    if not fits or (mode == "cubic" and x.dim() != 4) or (mode == "linear" and x.dim() > 5):
        raise OnnxError(f"Resize {node.name!r} with mode {mode!r} and places {place!r} is not supported")
    modest(node, wanted)
    names = {
        "nearest": "nearest",
        "cubic": "bicubic",
        "linear": {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.dim()),
    }
    align = {} if mode == "nearest" else {"align_corners": corners}
    return F.interpolate(x, wanted[2:], mode=str(names[mode]), **align)


@imports("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Any:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    padding, corners = node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)
