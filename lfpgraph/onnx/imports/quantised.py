"""Quantised ONNX operators in torch, with the numbers that integer kernels have.

Quantised activations are whole numbers in a float tensor, so that feedback passes through them; products of integers are
summed in float64, which holds them exactly. Integer weights stay as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .layers import conv
from .sequences import recurrent
from .table import IMPORTERS, Node, dtype_of, imports


def spread(axis: int, x: Tensor, values: Tensor) -> Tensor:
    """Scales or zero points of x: one for all, for each entry of an axis, or for each block."""
    if values.numel() == 1:
        return values.reshape(())
    axis %= x.dim()
    if values.dim() > 1:
        block = math.ceil(x.shape[axis] / values.shape[axis])
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values.reshape([-1 if i == axis else 1 for i in range(x.dim())])


@imports("DequantizeLinear", "com.microsoft.DequantizeLinear")
def dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Any:
    axis, shifted = node.get("axis", 1), x.to(torch.float32)
    if zero is not None:
        shifted = shifted - spread(axis, x, zero).to(torch.float32)
    return shifted.to(scale.dtype) * spread(axis, x, scale)


@imports("QuantizeLinear", "com.microsoft.QuantizeLinear")
def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Any:
    dtype = zero.dtype if zero is not None else dtype_of(node.get("output_dtype", 0) or 2)
    axis = node.get("axis", 1)
    return _quantized(x, spread(axis, x, scale), None if zero is None else spread(axis, x, zero), dtype, node)


def _quantized(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype, node: Node) -> Tensor:
    if dtype == torch.float32 and zero is not None:  # zero came from a quantised activation
        dtype = torch.uint8
    if dtype not in (torch.uint8, torch.int8, torch.int16, torch.uint16):
        raise OnnxError(f"{node.kind} {node.name!r} to {dtype} is not supported")
    limits, moved = torch.iinfo(dtype), torch.round(x / scale)
    return torch.clamp(moved if zero is None else moved + zero.to(moved.dtype), limits.min, limits.max)


@imports("DynamicQuantizeLinear")
def dynamic_quantize(node: Node, x: Tensor, zero_type: torch.dtype = torch.uint8) -> Any:
    """uint8 over the range of x, which is no path of feedback: detached, as torch.export is slow with many no_grad regions."""
    held = x.detach()
    low, high = held.min().clamp(max=0), held.max().clamp(min=0)
    scale = (high - low) / 255
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / divisor), 0, 255)
    return torch.clamp(torch.round(x / divisor) + zero, 0, 255), scale, zero.to(zero_type)


def _shifted(x: Tensor, zero: Tensor | None, axis: int = 0) -> Tensor:
    """Whole numbers minus their zero point (along an axis) in float64, which sums products of them exactly."""
    x = x.to(torch.float64)
    return x if zero is None else x - spread(axis, x, zero).to(torch.float64)


@imports("ConvInteger")
def conv_integer(node: Node, x: Tensor, w: Tensor, x_zero: Any = None, w_zero: Any = None) -> Any:
    return conv(node, _shifted(x, x_zero), _shifted(w, w_zero, 0))


@imports("MatMulInteger")
def matmul_integer(node: Node, a: Tensor, b: Tensor, a_zero: Any = None, b_zero: Any = None) -> Any:
    return _shifted(a, a_zero, -2) @ _shifted(b, b_zero, -1)


@imports("com.microsoft.MatMulIntegerToFloat")
def matmul_to_float(
    node: Node, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_zero: Any = None, b_zero: Any = None,
    bias: Any = None
) -> Any:  # fmt: skip
    found = matmul_integer(node, a, b, a_zero, b_zero).to(torch.float32) * (a_scale * b_scale)
    return found if bias is None else found + bias


@imports("com.microsoft.DynamicQuantizeMatMul")
def dynamic_matmul(node: Node, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Any = None, bias: Any = None) -> Any:
    whole, scale, zero = dynamic_quantize(node, a)
    return matmul_to_float(node, whole, b, scale, b_scale, zero, b_zero, bias)


@imports("QLinearConv")
def qlinear_conv(
    node: Node, x: Tensor, xs: Tensor, xz: Tensor, w: Tensor, ws: Tensor, wz: Tensor, ys: Tensor, yz: Tensor,
    bias: Any = None
) -> Any:  # fmt: skip
    found = conv(node, _shifted(x, xz), _shifted(w, wz, 0), None if bias is None else bias.to(torch.float64))
    scale = ws.reshape(-1, *[1] * (x.dim() - 2)) if ws.numel() > 1 else ws.reshape(())
    return _quantized(found.to(torch.float32), ys / (xs * scale), yz, yz.dtype, node)


@imports("QLinearMatMul")
def qlinear_matmul(
    node: Node, a: Tensor, a_s: Tensor, az: Tensor, b: Tensor, b_s: Tensor, bz: Tensor, ys: Tensor, yz: Tensor
) -> Any:  # fmt: skip
    found = matmul_integer(node, a, b, az, bz).to(torch.float32)
    return _quantized(found, ys / (a_s * b_s), yz, yz.dtype, node)


@imports("com.microsoft.QGemm")
def qgemm(
    node: Node, a: Tensor, a_s: Tensor, az: Tensor, b: Tensor, b_s: Tensor, bz: Tensor, bias: Any = None, ys: Any = None,
    yz: Any = None
) -> Any:  # fmt: skip
    """The bias is whole numbers, too, in the units of the product."""
    a, b = _shifted(a, az), _shifted(b, bz, 0 if node.get("transB", 0) else 1)
    found = (a.t() if node.get("transA", 0) else a) @ (b.t() if node.get("transB", 0) else b)
    found = (found if bias is None else found + bias).to(torch.float32)
    scale = node.get("alpha", 1.0) * a_s * b_s
    return found * scale if ys is None else _quantized(found, ys / scale, yz, yz.dtype, node)


def _on_floats(kind: str, pairs: int) -> Any:
    """A quantised form of another operator: its inputs, then scale and zero point of the output, dequantised around it."""

    def run(node: Node, *given: Any) -> Any:
        if node.get("channels_last", 0):
            raise OnnxError(f"{node.kind} {node.name!r} with channels last is not supported")
        plain = Node("", node.name, node.version)
        inputs = [dequantize(plain, *given[3 * i : 3 * i + 3]) for i in range(pairs)]
        found = IMPORTERS[kind](Node(kind, node.name, node.version, node.attributes), *inputs)
        scale, zero = given[3 * pairs], given[3 * pairs + 1]
        return _quantized(found, scale, zero, torch.uint8 if zero is None else zero.dtype, node)

    return run


_ONE = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "ReduceMean", "Sigmoid", "Softmax")
for _kind, _pairs in {"Add": 2, "Mul": 2, **dict.fromkeys(_ONE, 1)}.items():
    imports(f"com.microsoft.QLinear{_kind}")(_on_floats(_kind, _pairs))


@imports("com.microsoft.QLinearConcat")
def qlinear_concat(node: Node, scale: Tensor, zero: Tensor, *given: Tensor) -> Any:
    parts = [dequantize(node, *given[i : i + 3]) for i in range(0, len(given), 3)]
    return _quantized(torch.cat(parts, node.get("axis")), scale, zero, zero.dtype, node)


@imports("com.microsoft.DynamicQuantizeLSTM")
def dynamic_lstm(
    node: Node, x: Tensor, w: Tensor, r: Tensor, bias: Any = None, lengths: Any = None, h: Any = None, c: Any = None,
    peepholes: Any = None, *scales: Tensor
) -> Any:  # fmt: skip
    """Products of inputs, quantised as they come, and whole weights [directions, inputs, 4 * hidden]: exact sums, then scaled."""

    def whole(weight: Tensor, zero: Tensor) -> Tensor:
        return (weight.to(torch.float32) - zero.to(torch.float32).reshape(*zero.shape[:1], 1, -1)).transpose(1, 2)

    def linear(d: int, recurs: bool, given: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        numbers, scale, zero = dynamic_quantize(node, given, given.dtype)
        return F.linear(numbers - zero, weight) * (scale * scales[2 * recurs].reshape(w.shape[0], -1)[d]) + offset

    return recurrent(node, x, whole(w, scales[1]), whole(r, scales[3]), bias, lengths, h, c, peepholes, linear=linear)


@imports("com.microsoft.MatMulNBits")
def matmul_bits(
    node: Node, a: Tensor, b: Tensor, scales: Tensor, zeros: Any = None, groups: Any = None, bias: Any = None
) -> Any:  # fmt: skip
    """b [outputs, blocks, bytes] holds whole numbers of some bits, several in a byte, with a scale for each block."""
    bits, block, inputs, outputs = (node.get(name) for name in ("bits", "block_size", "K", "N"))
    if bits not in (2, 4, 8) or groups is not None:
        raise OnnxError(f"{node.kind} {node.name!r} with {bits} bits or with groups of its own is not supported")
    blocks = -(-inputs // block)

    def whole(packed: Tensor, count: int) -> Tensor:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        parts = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
        return parts.reshape(outputs, -1)[:, :count].to(scales.dtype)

    values, zero = whole(b, blocks * block).reshape(outputs, blocks, block), torch.tensor(2.0 ** (bits - 1))
    if zeros is not None:
        zero = zeros if zeros.is_floating_point() else whole(zeros.reshape(outputs, -1), blocks)
        zero = zero.reshape(outputs, blocks, 1)
    weight = ((values - zero.to(scales.dtype)) * scales.reshape(outputs, blocks, 1)).reshape(outputs, -1)[:, :inputs]
    return F.linear(a, weight.to(a.dtype), bias)
