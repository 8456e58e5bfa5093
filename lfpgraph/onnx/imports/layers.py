"""ONNX operators with weights, poolings and resampling, in torch."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, imports, modest, numbers, pad_widths, refused


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
        self.even: bool = self.before == self.after  # torch's own functions take such padding

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
    if how not in ("NOTSET", "VALID") or min(pads, default=0) < 0:
        raise refused(node, f"has padding {pads} of mode {how!r}, which is not known; use a Pad node.")
    return list(pads[:n]), list(pads[n:])


@imports("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    windows = _Windows(node, x, kernel := list(weight.shape[2:]))
    if (node.get("kernel_shape") or kernel) != kernel:
        raise refused(node, f"has kernel_shape {node.get('kernel_shape')}, and a weight of {kernel}; leave it out.")
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


def _sums(windows: _Windows, x: Tensor, ceil: bool) -> Tensor:
    """The sums over the windows of x, which is padded; with `ceil` also over a last one that begins in x and ends beyond it."""
    short = []
    for i, size in enumerate(x.shape[2:]):
        step, span = windows.stride[i], windows.dilation[i] * (windows.kernel[i] - 1) + 1
        count = -(-(size - span) // step) + 1 if ceil else 1
        count = count - 1 if ceil and (count - 1) * step >= size - windows.after[i] else count
        short.append(max((count - 1) * step + span - size, 0))
    x = F.pad(x, pad_widths([0] * windows.rank, short))
    function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[windows.rank]
    ones = torch.ones(1, 1, *windows.kernel, dtype=x.dtype)
    found = function(x.flatten(0, 1).unsqueeze(1), ones, None, windows.stride, 0, windows.dilation)
    return found.squeeze(1).unflatten(0, x.shape[:2])


@imports("AveragePool")
def average_pool(node: Node, x: Tensor) -> Any:
    windows = _Windows(node, x, node.get("kernel_shape"))
    include, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    close = all(d == 1 for d in windows.dilation) and all(2 * p <= k for p, k in zip(windows.before, windows.kernel))
    if windows.even and close:
        function: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[windows.rank]
        return function(x, windows.kernel, windows.stride, windows.before, ceil, include)
    counted = windows.padded(torch.ones_like(x[:1, :1]), 1.0 if include else 0.0)
    return _sums(windows, windows.padded(x), ceil) / _sums(windows, counted, ceil)


@imports("LpPool")
def lp_pool(node: Node, x: Tensor) -> Any:
    windows, p = _Windows(node, x, node.get("kernel_shape")), node.get("p", 2)
    return _sums(windows, windows.padded(x.abs() ** p), bool(node.get("ceil_mode", 0))) ** (1 / p)


@imports("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, x: Tensor) -> Any:
    axes = list(range(2, x.dim()))
    return x.mean(axes, keepdim=True) if node.kind == "GlobalAveragePool" else x.amax(axes, keepdim=True)


@imports("Resize", "Upsample", known=True)
def resize(node: Node, x: Tensor, *given: Any) -> Any:
    """By torch's own interpolation where that has the same places, else axis by axis, as sums of weighted entries."""
    old = node.kind == "Upsample" or node.version < 11  # no region, and places that begin at the first entry
    roi, scales, sizes = [*([None] if old else []), *given, None, None, None][:3]
    chosen = [a % x.dim() for a in node.get("axes", range(x.dim()))]
    factors = (node.get("scales") or []) if scales is None else numbers(node, scales)
    wanted = list(x.shape)
    exact = not factors and node.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if factors:
        for axis, n in zip(chosen, factors):
            wanted[axis] = int(x.shape[axis] * n)
    else:
        factors = _stretched(node, x, chosen, numbers(node, sizes), wanted)
    modest(node, wanted)
    how = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else node.get("nearest_mode", "round_prefer_floor")
    function = _torchs(node, x, how, rounding, {} if exact else dict(zip(chosen, factors)), wanted)
    if function is not None:
        return function(x, wanted[2:])
    region = numbers(node, roi) if how == "tf_crop_and_resize" else []
    for i, (axis, scale) in enumerate(zip(chosen, factors)):
        if region or scale != 1:
            size = int(x.shape[axis])
            at = _places(how, size, scale, wanted[axis], region[i :: len(chosen)])
            x = _along(node, x, axis, scale, at, rounding)
            if region:
                inside = ((at >= 0) & (at <= size - 1)).reshape([-1 if i == axis else 1 for i in range(x.dim())])
                x = torch.where(inside, x, node.get("extrapolation_value", 0.0))
    return x


def _stretched(node: Node, x: Tensor, axes: list[int], sizes: list[Any], wanted: list[Any]) -> list[float]:
    """The factors of sizes; `wanted` gets the sizes that there will be, where the proportions are kept."""
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    factors = [n / x.shape[axis] for axis, n in zip(axes, sizes)]
    if policy != "stretch":
        factors = [(min if policy == "not_larger" else max)(factors)] * len(axes)
        sizes = [int(factor * x.shape[axis] + 0.5) for axis, factor in zip(axes, factors)]
    for axis, n in zip(axes, sizes):
        wanted[axis] = n
    return factors


def _torchs(node: Node, x: Tensor, how: str, rounding: str, factors: dict[int, Any], wanted: list[Any]) -> Any:
    """torch's own interpolation, where it is the node's."""
    mode = node.get("mode", "nearest")
    even = all(n == int(n) or (x.shape[a] * n == int(x.shape[a] * n) and mode == "nearest") for a, n in factors.items())
    usual = how in ("half_pixel", "align_corners") or (how == "pytorch_half_pixel" and 1 not in wanted[2:])
    nearest = mode == "nearest" and how == "asymmetric" and rounding == "floor"
    plain = {"antialias": 0, "cubic_coeff_a": -0.75, "exclude_outside": 0}
    fits = (nearest or (mode in ("linear", "cubic") and usual)) and even and wanted[:2] == list(x.shape[:2])
    fits = fits and all(node.get(name, value) == value for name, value in plain.items()) and x.is_floating_point()
    names = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}, "cubic": {4: "bicubic"}}.get(mode, {})
    name = "nearest" if nearest else names.get(x.dim())
    if not fits or name is None:
        return None
    align: dict[str, Any] = {} if nearest else {"align_corners": how == "align_corners"}
    return partial(F.interpolate, mode=name, **align)


def _places(how: str, size: int, scale: float, wanted: int, region: list[float]) -> Tensor:
    """Where among the entries of an axis each of the wanted ones lies."""
    at, length = torch.arange(wanted, dtype=torch.float64), scale * size
    if how == "asymmetric":
        return at / scale
    if how == "align_corners":
        return at * ((size - 1) / (length - 1) if length != 1 else 0.0)
    if how == "tf_crop_and_resize":
        start, end = region
        if length == 1:
            return torch.full_like(at, (start + end) / 2 * (size - 1))
        return (start + at * (end - start) / (length - 1)) * (size - 1)
    if how == "pytorch_half_pixel" and length == 1:
        return torch.full_like(at, -0.5)
    if how not in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        raise OnnxError(f"places {how!r} of a Resize are not known")
    moved = size / 2 * (1 - wanted / length) if how == "half_pixel_symmetric" else 0.0
    return moved + (at + 0.5) / scale - 0.5


def _cubic(x: Tensor, a: float) -> Tensor:
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


_NEAREST = {
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
}


def _along(node: Node, x: Tensor, axis: int, scale: float, at: Tensor, rounding: str) -> Tensor:
    """One axis resized to entries that lie at these places of it."""
    size, mode = int(x.shape[axis]), node.get("mode", "nearest")
    if mode == "nearest":
        return x.index_select(axis, _NEAREST[rounding](at).clamp(0, size - 1).long())
    if mode not in ("linear", "cubic"):
        raise OnnxError(f"{node.kind} {node.name!r} of mode {mode!r} is not supported")
    modest(node, [len(at), size])
    shrink = min(scale, 1.0) if node.get("antialias", 0) else 1.0
    reach = math.ceil((2 if mode == "cubic" else 1) / shrink)
    near = at.floor().unsqueeze(1) + torch.arange(1 - reach, reach + 1)
    apart = (near - at.unsqueeze(1)).abs() * shrink
    weights = (1 - apart).clamp_min(0) if mode == "linear" else _cubic(apart, node.get("cubic_coeff_a", -0.75))
    if node.get("exclude_outside", 0):
        weights = torch.where((near >= 0) & (near < size), weights, 0.0)
    total = weights.sum(1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    matrix = torch.zeros(len(at), size, dtype=torch.float64)
    matrix = matrix.scatter_add(1, near.clamp(0, size - 1).long(), weights).to(x.dtype)
    return (x.movedim(axis, -1) @ matrix.t()).movedim(-1, axis)


@imports("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Any:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    padding, corners = node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)
