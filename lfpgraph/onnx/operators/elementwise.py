"""Translators of functions of one tensor: mathematical ones, activations, casts and copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..registry import SAME_NAMES, translates
from .builder import Builder, Value
from .operands import operand, scalar

aten = torch.ops.aten


def _unary(kind: str) -> Any:
    def translate(b: Builder, result: Any, x: Value) -> Any:
        return b.op(kind, operand(b, x, result.dtype))

    return translate


for _kind in SAME_NAMES:
    translates(getattr(aten, _kind.lower()).default)(_unary(_kind))


# Formulas of an operand; `number` makes a constant of its dtype.
_FORMULAS: dict[Any, Callable[[Builder, Any, Callable[[float], str]], Any]] = {
    aten.exp2.default: lambda b, x, number: b.op("Exp", b.op("Mul", x, number(math.log(2)))),
    aten.expm1.default: lambda b, x, number: b.op("Sub", b.op("Exp", x), number(1)),
    aten.log1p.default: lambda b, x, number: b.op("Log", b.op("Add", x, number(1))),
    aten.log2.default: lambda b, x, number: b.op("Div", b.op("Log", x), number(math.log(2))),
    aten.rsqrt.default: lambda b, x, number: b.op("Reciprocal", b.op("Sqrt", x)),
}


def _formula(function: Callable[[Builder, Any, Callable[[float], str]], Any]) -> Any:
    def translate(b: Builder, result: Any, x: Value) -> Any:
        return function(b, operand(b, x, result.dtype), lambda value: scalar(b, value, result.dtype))

    return translate


for _operation, _function in _FORMULAS.items():
    translates(_operation)(_formula(_function))


@translates(aten.gelu.default)
def gelu(b: Builder, result: Any, x: Value, approximate: str = "none") -> Any:
    return b.op("Gelu", x, approximate=approximate)


@translates(aten.leaky_relu.default)
def leaky_relu(b: Builder, result: Any, x: Value, negative_slope: float = 0.01) -> Any:
    return b.op("LeakyRelu", x, alpha=float(negative_slope))


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
