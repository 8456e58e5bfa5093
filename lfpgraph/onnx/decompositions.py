"""ATen's fused kernels and their backward forms, written once in operations that ONNX has.

Each function has the signature of the kernel it stands for and works on tensors of any backend; `step` hands the table
to make_fx. The registry's translators come first: what they know is not taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from ..errors import OnnxError
from .registry import TRANSLATORS

__all__ = ["decomposition_table"]

aten = torch.ops.aten
_MANY = 16  # channels
_OWN: dict[Any, Callable[..., Any]] = {}


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Decompositions for make_fx: ours, then torch's for what no translator takes."""
    table = {op: how for op, how in core_aten_decompositions().items() if op not in TRANSLATORS}
    return {**table, **_OWN}


def _decomposes(operation: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _OWN[operation] = function
        return function

    return register


@_decomposes(aten.convolution_backward.default)
def convolution_backward(
    s: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a convolution."""
    n = x.dim() - 2
    stride, padding, dilation = (_each(values, n) for values in (stride, padding, dilation))
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


def _each(values: Sequence[int], n: int) -> list[int]:
    return list(values) * n if len(values) == 1 else list(values)


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
    count = s.shape[0] * height * width  # written out: inferred, it would be compared, and the batch fixed
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


@_decomposes(aten.max_pool2d_with_indices_backward.default)
def max_pool2d_backward(
    s: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, indices: Tensor
) -> Tensor:
    """Each signal at the place its maximum came from."""
    lead = x.shape[:-2]
    flat = torch.zeros((*lead, x.shape[-2] * x.shape[-1]), dtype=s.dtype, device=s.device)
    return flat.scatter_add(-1, indices.flatten(-2), s.flatten(-2)).reshape(x.shape)


@_decomposes(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(
    s: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, include: bool, divisor: int | None
) -> Tensor:
    """Each signal spread over its window: a depthwise transposed convolution with ones."""
    kernel = _each(kernel, 2)
    stride, padding = _each(stride, 2) if stride else kernel, _each(padding, 2)
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


def _window_sizes(
    out: Any, size: Any, kernel: Any, stride: Any, padding: Any, include: bool, divisor: int | None
) -> list[list[float]]:
    """What each window of an average pooling divides by."""
    sides = []
    for n, length, k, step, pad in zip(out, size, kernel, stride, padding):
        starts = [i * step - pad for i in range(int(n))]
        ends = [min(start + k, length + pad) for start in starts]
        if not include:
            starts, ends = [max(start, 0) for start in starts], [min(end, length) for end in ends]
        sides.append([end - start for start, end in zip(starts, ends)])
    return [[float(divisor or a * b) for b in sides[1]] for a in sides[0]]


@_decomposes(aten._native_batch_norm_legit_functional.default)
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, mean and inverse deviation of the batch, new running statistics."""
    if not training:
        out, mean, invstd = batch_norm_eval(x, weight, bias, running_mean, running_var, momentum, eps)
        return out, mean, invstd, running_mean, running_var
    axes = [0, *range(2, x.dim())]
    mean = x.mean(axes)
    centred = x - _channels(mean, x)
    var = (centred * centred).mean(axes)
    invstd = torch.rsqrt(var + eps)
    count = torch.scalar_tensor(x.numel() // x.shape[1], dtype=var.dtype, device=x.device)
    unbiased = var * (count / (count - 1))
    new_mean = running_mean * (1 - momentum) + mean * momentum
    new_var = running_var * (1 - momentum) + unbiased * momentum
    return _scaled(centred, invstd, weight, bias), mean, invstd, new_mean, new_var


@_decomposes(aten._native_batch_norm_legit.default)
def batch_norm_legit(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """The first three results; running statistics are written elsewhere."""
    return batch_norm(x, *args)[:3]


@_decomposes(aten._native_batch_norm_legit.no_stats)
def batch_norm_no_stats(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    """Instance norms are of this kind."""
    zeros = torch.zeros((x.shape[1],), dtype=x.dtype, device=x.device)
    return batch_norm(x, weight, bias, zeros, zeros, True, momentum, eps)[:3]


@_decomposes(aten._native_batch_norm_legit_no_training.default)
def batch_norm_eval(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """With the running statistics; the other results are empty, as ATen's are."""
    empty = torch.zeros((0,), dtype=x.dtype, device=x.device)
    invstd = torch.rsqrt(running_var + eps)
    return _scaled(x - _channels(running_mean, x), invstd, weight, bias), empty, empty


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Values [c] to be met by x [n, c, ...]."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


def _scaled(centred: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    out = centred * _channels(invstd if weight is None else invstd * weight, centred)
    return out if bias is None else out + _channels(bias, centred)


@_decomposes(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    s: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    mean: Tensor | None, invstd: Tensor | None, training: bool, eps: float, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a batch norm."""
    axes = [0, *range(2, x.dim())]
    if not training:
        assert running_mean is not None and running_var is not None
        mean, invstd = running_mean, torch.rsqrt(running_var + eps)
    assert mean is not None and invstd is not None
    normal = (x - _channels(mean, x)) * _channels(invstd, x)
    of_bias = s.sum(axes)
    of_weight = (s * normal).sum(axes)
    scale = invstd if weight is None else invstd * weight
    of_x = None
    if mask[0] and training:
        count = torch.scalar_tensor(x.numel() // x.shape[1], dtype=s.dtype, device=x.device)
        inner = s - _channels(of_bias / count, x) - normal * _channels(of_weight / count, x)
        of_x = inner * _channels(scale, x)
    elif mask[0]:
        of_x = s * _channels(scale, x)
    return of_x, of_weight if mask[1] else None, of_bias if mask[2] else None


@_decomposes(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    s: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, invstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a layer norm."""
    outer, inner = list(range(x.dim() - len(shape))), list(range(x.dim() - len(shape), x.dim()))
    normal = (x - mean) * invstd
    of_x = None
    if mask[0]:
        scaled = s if weight is None else s * weight
        rest = scaled - scaled.mean(inner, keepdim=True) - normal * (scaled * normal).mean(inner, keepdim=True)
        of_x = rest * invstd
    of_weight = (s * normal).sum(outer) if mask[1] and outer else s * normal
    of_bias = s.sum(outer) if mask[2] and outer else s
    return of_x, of_weight if mask[1] else None, of_bias if mask[2] else None


@_decomposes(aten.native_group_norm.default)
def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, c: Any, places: Any, groups: int, eps: float
) -> tuple[Tensor, ...]:
    """Output, and mean and inverse deviation [n, groups]."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    invstd = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    out = (centred * invstd).reshape(x.shape)
    if weight is not None:
        out = out * _channels(weight, x)
    if bias is not None:
        out = out + _channels(bias, x)
    return out, mean.squeeze(-1), invstd.squeeze(-1)


@_decomposes(aten.native_group_norm_backward.default)
def group_norm_backward(
    s: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, n: Any, c: Any, places: Any, groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a group norm."""
    grouped = (x.shape[0], groups, -1)
    normal = (x.reshape(grouped) - mean.unsqueeze(-1)) * invstd.unsqueeze(-1)
    axes = [0, *range(2, x.dim())]
    of_x = None
    if mask[0]:
        scaled = (s if weight is None else s * _channels(weight, x)).reshape(grouped)
        rest = scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True)
        of_x = (rest * invstd.unsqueeze(-1)).reshape(x.shape)
    of_weight = (s * normal.reshape(x.shape)).sum(axes) if mask[1] else None
    return of_x, of_weight, s.sum(axes) if mask[2] else None


def _attention_weights(
    q: Tensor, k: Tensor, dropout: float, causal: bool, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, float]:
    """The softmax, and the scale. Forward and backward write the same operations, and equal nodes become one."""
    if dropout:
        raise OnnxError("attention with dropout draws its mask inside a kernel; set the attention's dropout to 0")
    if q.shape[1] != k.shape[1]:
        raise OnnxError("attention whose queries and keys differ in heads has no ONNX form here")
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.matmul(q * factor, k.transpose(-1, -2))
    if causal:
        rows, columns = q.shape[-2], k.shape[-2]
        seen = torch.ones((rows, columns), dtype=torch.bool, device=q.device).tril()
        scores = torch.where(seen, scores, -math.inf)
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1), factor


@_decomposes(aten._scaled_dot_product_flash_attention_for_cpu.default)
def attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *, attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The attention; its log-sum-exp is zeros, since our backward does without."""
    weights, _ = _attention_weights(q, k, dropout_p, is_causal, attn_mask, scale)
    return torch.matmul(weights, v), torch.zeros(q.shape[:-1], dtype=torch.float32, device=q.device)


@_decomposes(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def attention_backward(
    s: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dropout_p: float, is_causal: bool, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Signals of queries, keys and values."""
    weights, factor = _attention_weights(q, k, dropout_p, is_causal, attn_mask, scale)
    of_v = torch.matmul(weights.transpose(-1, -2), s)
    at_weights = torch.matmul(s, v.transpose(-1, -2))
    at_scores = weights * (at_weights - (s * out).sum(-1, keepdim=True))
    of_q = torch.matmul(at_scores, k) * factor
    of_k = torch.matmul(at_scores.transpose(-1, -2), q * factor)
    return of_q, of_k, of_v
