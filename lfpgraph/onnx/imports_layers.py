"""ONNX operators with weights, poolings, norms, reductions and recurrences, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OnnxError
from .imports import Node, imports, numbers, tensor_of
from .imports_shapes import axes_of, modest


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


@imports("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    n = x.dim() - 2
    stride, dilation = node.get("strides", [1] * n), node.get("dilations", [1] * n)
    before, after = _pads(node, x, list(weight.shape[2:]), stride, dilation)
    if before != after:
        x, before = F.pad(x, _flat(before, after)), [0] * n
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(n)
    if function is None:
        raise OnnxError(f"Conv {node.name!r} over {n} dimensions is not supported")
    return function(x, weight, bias, stride, before, dilation, node.get("group", 1))


def _flat(before: list[int], after: list[int]) -> list[int]:
    return [w for pair in reversed(list(zip(before, after))) for w in pair]


def _pads(node: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Any:
    """Padding before and after each place axis."""
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
            widths = [0, 0] * (n - 1 - i) + [0, before + size - full.shape[axis]]
            fill = torch.zeros(()) if bias is None else None
            if fill is None:
                assert bias is not None
                more = bias.reshape(1, -1, *[1] * n).expand(*full.shape[:axis], widths[-1], *full.shape[axis + 1 :])
                full = torch.cat([full, more], axis)
            else:
                full = F.pad(full, widths)
        full = full.narrow(axis, before, size)
    return full


@imports("MaxPool")
def max_pool(node: Node, x: Tensor) -> Any:
    n = x.dim() - 2
    kernel = node.get("kernel_shape")
    stride, dilation = node.get("strides", [1] * n), node.get("dilations", [1] * n)
    before, after = _pads(node, x, kernel, stride, dilation)
    ceil = bool(node.get("ceil_mode", 0))
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
    if node.outputs > 1:
        if before != after or node.get("storage_order", 0):
            raise OnnxError(f"MaxPool {node.name!r} with places and uneven padding is not supported")
        value, places = function(x, kernel, stride, before, dilation, ceil, True)
        area = 1
        for size in x.shape[2:]:
            area = area * size
        planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * n)
        return value, places + planes * area
    if before != after or any(2 * p > k for p, k in zip(before, kernel)):
        lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, before = F.pad(x, _flat(before, after), value=lowest), [0] * n
    if not x.is_floating_point():
        return function(x.to(torch.float64), kernel, stride, before, dilation, ceil).to(x.dtype)
    return function(x, kernel, stride, before, dilation, ceil)


@imports("AveragePool")
def average_pool(node: Node, x: Tensor) -> Any:
    n = x.dim() - 2
    kernel = node.get("kernel_shape")
    stride, dilation = node.get("strides", [1] * n), node.get("dilations", [1] * n)
    before, after = _pads(node, x, kernel, stride, dilation)
    include, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    if any(d != 1 for d in dilation):
        raise OnnxError(f"AveragePool {node.name!r} with dilation is not supported")
    function: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
    if before == after and all(2 * p <= k for p, k in zip(before, kernel)):
        return function(x, kernel, stride, before, ceil, include)
    if include and not ceil:
        return function(F.pad(x, _flat(before, after)), kernel, stride)
    counts = F.pad(torch.ones_like(x[:1, :1]), _flat(before, after), value=1.0 if include else 0.0)
    total = function(F.pad(x, _flat(before, after)), kernel, stride, 0, ceil)
    return total / function(counts, kernel, stride, 0, ceil)


@imports("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, x: Tensor) -> Any:
    axes = list(range(2, x.dim()))
    return x.mean(axes, keepdim=True) if node.kind == "GlobalAveragePool" else x.amax(axes, keepdim=True)


@imports("BatchNormalization")
def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    if node.get("training_mode", 0):
        raise OnnxError(f"BatchNormalization {node.name!r} is in training mode; export the model for inference.")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


@imports("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Any:
    return F.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


@imports("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Any:
    groups = node.get("num_groups")
    if node.version < 21:  # one scale for each group; since 21 for each channel
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@imports("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Any, bias: Any = None) -> Any:
    axis = node.get("axis", -1) % x.dim()
    eps, shape = node.get("epsilon", 1e-5), list(x.shape[axis:])
    if node.outputs == 1:
        fits = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
        if fits:
            return F.layer_norm(x, shape, scale, bias, eps)
        out = F.layer_norm(x, shape, eps=eps) * scale
        return out if bias is None else out + bias
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + eps)
    out = (x - mean) * inverse * scale
    return (out if bias is None else out + bias), mean, inverse


@imports("RMSNormalization")
def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Any:
    return F.rms_norm(x, list(x.shape[node.get("axis", -1) % x.dim() :]), scale, node.get("epsilon", 1e-5))


@imports("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Any:
    size = torch.linalg.vector_norm(x, node.get("p", 2), node.get("axis", -1), keepdim=True)
    return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))


@imports("MeanVarianceNormalization")
def mean_variance(node: Node, x: Tensor) -> Any:
    axes = node.get("axes", [0, 2, 3])
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / (torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True)) + 1e-9)


@imports("LRN")
def lrn(node: Node, x: Tensor) -> Any:
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    before = (size - 1) // 2
    squares = F.pad((x * x).unsqueeze(1), [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
    total = sum(squares.narrow(2, i, x.shape[1]) for i in range(size))
    assert isinstance(total, Tensor)
    return x / (node.get("bias", 1.0) + alpha / size * total.squeeze(1)) ** node.get("beta", 0.75)


@imports("Softmax", "LogSoftmax")
def softmax(node: Node, x: Tensor) -> Any:
    function: Any = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    if node.version >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()  # before opset 13 all axes from this one on are one
    return function(x.flatten(axis), -1).reshape(x.shape)


@imports("Hardmax")
def hardmax(node: Node, x: Tensor) -> Any:
    axis = node.get("axis", -1 if node.version >= 13 else 1)
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)


def _reduction(kind: str) -> Any:
    def run(node: Node, x: Any, axes: Any = None) -> Any:
        x = tensor_of(x)
        chosen, keep = axes_of(node, axes), bool(node.get("keepdims", 1))
        if not chosen:
            if node.get("noop_with_empty_axes", 0):
                chosen = []
                return _REDUCTIONS[kind](x.unsqueeze(0), [0], False) if kind not in _PLAIN else x
            chosen = list(range(x.dim()))
        return _REDUCTIONS[kind](x, chosen, keep) if chosen else x

    return run


_PLAIN = {"Sum", "Mean", "Max", "Min", "Prod"}


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(name: str) -> Any:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return run(x.to(torch.uint8), axes, keep).to(torch.bool)
        if not x.numel() and x.is_floating_point():
            return x.sum(axes, keepdim=keep) + (float("-inf") if name == "amax" else float("inf"))
        return getattr(torch, name)(x, axes, keepdim=keep)

    return run


_REDUCTIONS: dict[str, Any] = {
    "Sum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "Mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "Max": _extreme("amax"),
    "Min": _extreme("amin"),
    "Prod": _product,
    "L1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep, dtype=x.dtype),
    "L2": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt(),
    "SumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep, dtype=x.dtype),
    "LogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "LogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}
for _kind in _REDUCTIONS:
    imports(f"Reduce{_kind}", known=True)(_reduction(_kind))


@imports("ArgMax", "ArgMin")
def arg_extreme(node: Node, x: Tensor) -> Any:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    if not node.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)


@imports("CumSum", known=True)
def cumsum(node: Node, x: Tensor, axis: Any) -> Any:
    at = int(numbers(node, axis)[0])
    turned = x.flip(at) if node.get("reverse", 0) else x
    found = torch.cumsum(turned, at).to(x.dtype)
    if node.get("exclusive", 0):
        found = found - turned
    return found.flip(at) if node.get("reverse", 0) else found


@imports("Det")
def det(node: Node, x: Tensor) -> Any:
    return torch.linalg.det(x)


@imports("LSTM", "GRU", "RNN")
def recurrent(
    node: Node, x: Tensor, w: Tensor, r: Tensor, bias: Any = None, lengths: Any = None, *state: Any
) -> Any:  # fmt: skip
    """Unrolled over time: x [time, batch, inputs]; Y [time, directions, batch, hidden], then the last states."""
    if lengths is not None or node.get("clip") is not None or node.get("layout", 0) or node.get("input_forget", 0):
        raise OnnxError(f"{node.kind} {node.name!r}: lengths, clip, layout and input_forget are not supported")
    if len(state) > 2 and state[2] is not None:
        raise OnnxError(f"LSTM {node.name!r}: peepholes are not supported")
    names = [str(a).lower() for a in node.get("activations", [])]
    usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[node.kind]
    if names and names != usual * (len(names) // len(usual)):
        raise OnnxError(f"{node.kind} {node.name!r}: activations {names} are not supported, {usual} are")
    direction, hidden = node.get("direction", "forward"), r.shape[-1]
    start = [s if s is not None else x.new_zeros(w.shape[0], x.shape[1], hidden) for s in (*state, None, None)[:2]]
    outputs, lasts = [], []
    for d in range(w.shape[0]):
        backward = direction == "reverse" or d == 1
        b = x.new_zeros(2 * w.shape[1]) if bias is None else bias[d]
        series, last = _unroll(node, x.flip(0) if backward else x, w[d], r[d], b, [s[d] for s in start])
        outputs.append(series.flip(0) if backward else series)
        lasts.append(last)
    found = [torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*lasts))]
    return tuple(found[: max(node.outputs, 1)]) if node.outputs > 1 else found[0]


def _unroll(node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor, state: list[Tensor]) -> Any:
    wb, rb = b.chunk(2)
    given = F.linear(x, w, wb)
    h, c = state
    series = []
    for t in range(x.shape[0]):
        if node.kind == "LSTM":
            i, o, f, g = (given[t] + F.linear(h, r, rb)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        elif node.kind == "GRU":
            h = _gru_step(node, given[t], h, r, rb)
        else:
            h = torch.tanh(given[t] + F.linear(h, r, rb))
        series.append(h)
    return torch.stack(series), [h, c] if node.kind == "LSTM" else [h]


def _gru_step(node: Node, given: Tensor, h: Tensor, r: Tensor, rb: Tensor) -> Tensor:
    (z, reset, new), parts, biases = given.chunk(3, -1), r.chunk(3), rb.chunk(3)
    z = torch.sigmoid(z + F.linear(h, parts[0], biases[0]))
    reset = torch.sigmoid(reset + F.linear(h, parts[1], biases[1]))
    if node.get("linear_before_reset", 0):
        new = torch.tanh(new + reset * F.linear(h, parts[2], biases[2]))
    else:
        new = torch.tanh(new + F.linear(reset * h, parts[2], biases[2]))
    return (1 - z) * new + z * h


@imports("Resize", known=True)
def resize(node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    """What torch's interpolation does too: nearest asymmetric, linear and cubic by half pixels or aligned corners."""
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
    fits = nearest or (mode in ("linear", "cubic") and usual)
    fits = (
        fits
        and even
        and node.get("cubic_coeff_a", -0.75) == -0.75
        and not node.get("antialias", 0)
        and not node.get("exclude_outside", 0)
    )
    fits = fits and node.get("keep_aspect_ratio_policy", "stretch") == "stretch" and wanted[:2] == list(x.shape[:2])
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
