"""Translators of functions of one tensor: mathematical ones, activations, casts and copies."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import operand, scalar

aten = torch.ops.aten

_UNARY = {
    aten.abs.default: "Abs",
    aten.acos.default: "Acos",
    aten.acosh.default: "Acosh",
    aten.asin.default: "Asin",
    aten.asinh.default: "Asinh",
    aten.atan.default: "Atan",
    aten.atanh.default: "Atanh",
    aten.ceil.default: "Ceil",
    aten.cos.default: "Cos",
    aten.cosh.default: "Cosh",
    aten.erf.default: "Erf",
    aten.exp.default: "Exp",
    aten.floor.default: "Floor",
    aten.log.default: "Log",
    aten.neg.default: "Neg",
    aten.reciprocal.default: "Reciprocal",
    aten.relu.default: "Relu",
    aten.round.default: "Round",
    aten.sigmoid.default: "Sigmoid",
    aten.sign.default: "Sign",
    aten.sin.default: "Sin",
    aten.sinh.default: "Sinh",
    aten.sqrt.default: "Sqrt",
    aten.tan.default: "Tan",
    aten.tanh.default: "Tanh",
}


def _unary(kind: str) -> Any:
    def translate(b: Builder, result: Any, x: Value) -> Any:
        return b.op(kind, operand(b, x, result.dtype))

    translate.__name__ = kind.lower()
    return translate


for _operation, _kind in _UNARY.items():
    translates(_operation)(_unary(_kind))


@translates(aten.rsqrt.default)
def rsqrt(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Reciprocal", b.op("Sqrt", operand(b, x, result.dtype)))


@translates(aten.exp2.default)
def exp2(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Exp", b.op("Mul", x, scalar(b, math.log(2), result.dtype)))


@translates(aten.expm1.default)
def expm1(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Sub", b.op("Exp", x), scalar(b, 1, result.dtype))


@translates(aten.log1p.default)
def log1p(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Log", b.op("Add", x, scalar(b, 1, result.dtype)))


@translates(aten.log2.default)
def log2(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Div", b.op("Log", x), scalar(b, math.log(2), result.dtype))


@translates(aten.gelu.default)
def gelu(b: Builder, result: Any, x: Value, approximate: str = "none") -> Any:
    return b.op("Gelu", x, approximate=approximate)


@translates(aten.leaky_relu.default)
def leaky_relu(b: Builder, result: Any, x: Value, negative_slope: float = 0.01) -> Any:
    return b.op("LeakyRelu", x, alpha=float(negative_slope))


@translates(aten.elu.default)
def elu(b: Builder, result: Any, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    low = b.op("Sub", b.op("Exp", b.op("Mul", x, scalar(b, input_scale, x.dtype))), scalar(b, 1, x.dtype))
    low = b.op("Mul", low, scalar(b, alpha * scale, x.dtype))
    high = b.op("Mul", x, scalar(b, scale, x.dtype))
    return b.op("Where", b.op("Greater", x, scalar(b, 0, x.dtype)), high, low)


@translates(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(b: Builder, result: Any, x: Any, y: Any) -> Any:
    """ONNX cannot see the sign of a zero: minus zero counts as plus zero here, as epsilon's formula wants it."""
    size = b.op("Abs", operand(b, x, result.dtype))
    negative = b.op("Less", operand(b, y, result.dtype), scalar(b, 0, result.dtype))
    return b.op("Where", negative, b.op("Neg", size), size)


@translates(aten._to_copy.default)
def to_copy(b: Builder, result: Any, x: Value, **ignored: Any) -> Any:
    return b.cast(x, x.dtype, result.dtype)


@translates(aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default)
def same(b: Builder, result: Any, x: Value, **ignored: Any) -> Any:
    return x.name


@translates(aten.scalar_tensor.default)
def scalar_tensor(b: Builder, result: Any, x: Any, **ignored: Any) -> Any:
    return operand(b, x, result.dtype)
