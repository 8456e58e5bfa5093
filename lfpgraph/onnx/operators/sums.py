"""Translators of products, convolutions, poolings, norms and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import each_of, operand, scalar

aten = torch.ops.aten


@translates(aten.mm.default, aten.bmm.default)
def matmul(b: Builder, result: Any, x: Value, y: Value) -> Any:
    return b.op("MatMul", x, y)


@translates(aten.addmm.default)
def addmm(b: Builder, result: Any, c: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Any:
    return b.op("Gemm", x, y, c, alpha=float(alpha), beta=float(beta))


@translates(aten.convolution.default)
def convolution(
    b: Builder, result: Any, x: Value, weight: Value, bias: Value | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    n = weight.rank - 2
    spread: dict[str, Any] = {
        "strides": each_of(stride, n), "pads": each_of(padding, n) * 2, "dilations": each_of(dilation, n), "group": groups,
    }  # fmt: skip
    if transposed:
        return b.op("ConvTranspose", x, weight, bias, output_padding=each_of(output_padding, n), **spread)
    return b.op("Conv", x, weight, bias, **spread)


def _pool_attributes(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool, n: int
) -> dict[str, Any]:
    kernel = each_of(kernel, n)
    return {
        "kernel_shape": kernel, "strides": each_of(stride, n) if stride else kernel, "pads": each_of(padding, n) * 2,
        "ceil_mode": int(ceil),
    }  # fmt: skip


@translates(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(
    b: Builder, result: Any, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    if divisor_override is not None:
        raise NotImplementedError("an average pooling with divisor_override")
    n = len(kernel) if len(kernel) > 1 else x.rank - 2
    attributes = _pool_attributes(kernel, stride, padding, ceil_mode, n)
    return b.op("AveragePool", x, count_include_pad=int(count_include_pad), **attributes)


@translates(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def max_pool_with_indices(
    b: Builder, result: Any, x: Value, kernel: Sequence[int], stride: Sequence[int] = (),
    padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """Torch's indices count within an image and channel; ONNX's over the whole tensor, so they are taken modulo."""
    n = x.rank - 2
    attributes = _pool_attributes(kernel, stride, padding, ceil_mode, n)
    value, places = b.op("MaxPool", x, outputs=2, dilations=each_of(dilation, n), **attributes)
    area: Any = 1
    for axis in range(2, x.rank):
        size = b.size(x, axis)
        if isinstance(size, int) and isinstance(area, int):
            area = size * area
        else:
            area = b.op("Mul", b.vector(size), b.vector(area))
    return [value, b.op("Mod", places, b.vector(area))]


@translates(aten.upsample_nearest2d.default)
def upsample_nearest(b: Builder, result: Any, x: Value, size: Sequence[Any], *scales: Any) -> Any:
    sizes = b.sizes([b.size(x, 0), b.size(x, 1), *size])
    how: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return b.op("Resize", x, None, None, sizes, **how)


@translates(aten.native_layer_norm.default)
def native_layer_norm(
    b: Builder, result: Any, x: Value, shape: Sequence[Any], weight: Value | None, bias: Value | None, eps: float
) -> Any:
    scale = b.constant(torch.ones([int(n) for n in shape], dtype=x.dtype)) if weight is None else weight
    return list(b.op("LayerNormalization", x, scale, bias, outputs=3, axis=-len(shape), epsilon=float(eps)))


@translates(aten._softmax.default)
def softmax(b: Builder, result: Any, x: Value, axis: int, *ignored: Any) -> Any:
    return b.op("Softmax", operand(b, x, result.dtype), axis=axis % max(x.rank, 1))


@translates(aten._log_softmax.default)
def log_softmax(b: Builder, result: Any, x: Value, axis: int, *ignored: Any) -> Any:
    return b.op("LogSoftmax", operand(b, x, result.dtype), axis=axis % max(x.rank, 1))


def _reduce(b: Builder, kind: str, x: Any, rank: int, axes: Any, keep: bool) -> Any:
    if axes is None or axes == []:
        return b.op(kind, x, keepdims=int(keep))
    chosen = [axes] if isinstance(axes, int) else axes
    if rank == 0:
        return x
    return b.op(kind, x, b.ints(*(a % rank for a in chosen)), keepdims=int(keep))


def _reduction(kind: str) -> Any:
    def translate(b: Builder, result: Any, x: Value, axes: Any = None, keep: bool = False, **ignored: Any) -> Any:
        return _reduce(b, kind, operand(b, x, result.dtype), x.rank, axes, keep)

    return translate


translates(aten.sum.dim_IntList, aten.sum.default)(_reduction("ReduceSum"))
translates(aten.mean.dim, aten.mean.default)(_reduction("ReduceMean"))
translates(aten.prod.default, aten.prod.dim_int)(_reduction("ReduceProd"))
translates(aten.amax.default, aten.max.default)(_reduction("ReduceMax"))
translates(aten.amin.default, aten.min.default)(_reduction("ReduceMin"))


@translates(aten.any.dim, aten.any.default, aten.any.dims)
def any_(b: Builder, result: Any, x: Value, axes: Any = None, keep: bool = False) -> Any:
    number = b.cast(b.cast(x, x.dtype, torch.bool), torch.bool, torch.int32)
    return b.cast(_reduce(b, "ReduceMax", number, x.rank, axes, keep), torch.int32, torch.bool)


def _place(kind: str) -> Any:
    def translate(b: Builder, result: Any, x: Value, axis: int | None = None, keep: bool = False) -> Any:
        if axis is None:
            return b.op(kind, b.op("Reshape", x, b.ints(-1)), axis=0, keepdims=0)
        return b.op(kind, x, axis=axis % x.rank, keepdims=int(keep))

    return translate


def _extreme(kind: str) -> Any:
    def translate(b: Builder, result: Any, x: Value, axis: int, keep: bool = False) -> Any:
        return [_reduce(b, f"Reduce{kind}", x, x.rank, axis, keep), _place(f"Arg{kind}")(b, None, x, axis, keep)]

    return translate


translates(aten.argmax.default)(_place("ArgMax"))
translates(aten.argmin.default)(_place("ArgMin"))
translates(aten.max.dim)(_extreme("Max"))
translates(aten.min.dim)(_extreme("Min"))


@translates(aten.cumsum.default)
def cumsum(b: Builder, result: Any, x: Value, axis: int, **ignored: Any) -> Any:
    return b.op("CumSum", operand(b, x, result.dtype), scalar(b, axis % max(x.rank, 1), torch.int64))


@translates(aten.native_dropout.default)
def native_dropout(b: Builder, result: Any, x: Value, p: float, train: bool | None = True) -> Any:
    if not train:
        return [x.name, b.cast(b.op("Equal", x, x), torch.bool, torch.bool)]
    mask = b.op("GreaterOrEqual", b.op("RandomUniformLike", x), scalar(b, p, x.dtype))
    scaled = b.op("Mul", x, scalar(b, 1 / (1 - p) if p < 1 else 0, x.dtype))
    return [b.op("Mul", scaled, b.cast(mask, torch.bool, x.dtype)), mask]


@translates(aten.var_mean.correction)
def var_mean(
    b: Builder, result: Any, x: Value, axes: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Any:
    if correction != 0:
        raise NotImplementedError("a variance with a correction")
    mean = _reduce(b, "ReduceMean", x, x.rank, axes, True)
    centred = b.op("Sub", x, mean)
    variance = _reduce(b, "ReduceMean", b.op("Mul", centred, centred), x.rank, axes, keepdim)
    return [variance, mean if keepdim else _reduce(b, "ReduceMean", x, x.rank, axes, False)]
