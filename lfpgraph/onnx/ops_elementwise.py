"""Translators of elementwise operations: arithmetic, comparisons, casts, activations."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from .builder import Builder, Value
from .registry import translates

__all__ = ["operand", "scalar"]

aten = torch.ops.aten


def scalar(b: Builder, number: float, dtype: torch.dtype) -> str:
    """A constant of no dimensions."""
    return b.constant(torch.tensor(number, dtype=dtype))


def operand(b: Builder, item: Any, dtype: torch.dtype) -> Any:
    """A tensor, number or open size as an operand of a dtype."""
    if isinstance(item, Value):
        return b.cast(item, item.dtype, dtype)
    if isinstance(item, str):
        return b.op("Squeeze", b.cast(item, torch.int64, dtype), b.ints(0))
    return scalar(b, item, dtype)


def _common(*items: Any) -> torch.dtype:
    """The dtype in which operands meet, as torch promotes them."""
    found = None
    probes: list[Any] = []
    for item in items:
        if isinstance(item, Value):
            probes.append(torch.empty((1,) * item.rank, dtype=item.dtype))
        else:
            probes.append(1 if isinstance(item, str) else item)
    found = probes[0]
    for probe in probes[1:]:
        dtype = torch.result_type(found, probe)
        rank = max(getattr(found, "dim", lambda: 0)(), getattr(probe, "dim", lambda: 0)())
        found = torch.empty((1,) * rank, dtype=dtype)
    return found.dtype if isinstance(found, torch.Tensor) else torch.result_type(found, found)


def _binary(b: Builder, kind: str, x: Any, y: Any, dtype: torch.dtype) -> str:
    return str(b.op(kind, operand(b, x, dtype), operand(b, y, dtype)))


@translates(aten.add.Tensor, aten.add.Scalar)
def add(b: Builder, result: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    if alpha != 1:
        y = b.op("Mul", operand(b, y, result.dtype), scalar(b, alpha, result.dtype))
        return b.op("Add", operand(b, x, result.dtype), y)
    if isinstance(y, float | int) and y == 0:  # adding zero changes minus zero alone
        return operand(b, x, result.dtype)
    return _or(b, x, y) if result.dtype == torch.bool else _binary(b, "Add", x, y, result.dtype)


@translates(aten.sub.Tensor, aten.sub.Scalar)
def sub(b: Builder, result: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    if alpha != 1:
        y = b.op("Mul", operand(b, y, result.dtype), scalar(b, alpha, result.dtype))
        return b.op("Sub", operand(b, x, result.dtype), y)
    return _binary(b, "Sub", x, y, result.dtype)


@translates(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(b: Builder, result: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    return sub(b, result, y, x, alpha)


@translates(aten.mul.Tensor, aten.mul.Scalar)
def mul(b: Builder, result: Any, x: Any, y: Any) -> Any:
    if result.dtype == torch.bool:
        return b.op("And", operand(b, x, torch.bool), operand(b, y, torch.bool))
    return _binary(b, "Mul", x, y, result.dtype)


@translates(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor)
def div(b: Builder, result: Any, x: Any, y: Any) -> Any:
    return _binary(b, "Div", x, y, result.dtype)


@translates(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(b: Builder, result: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(b, result, x, y)
    if rounding_mode == "floor":
        return floor_divide(b, result, x, y)
    quotient = _binary(b, "Div", x, y, result.dtype)
    return _truncate(b, quotient, result.dtype)


def _truncate(b: Builder, x: str, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point:
        return x
    return str(b.op("Mul", b.op("Sign", x), b.op("Floor", b.op("Abs", x))))


@translates(aten.trunc.default, aten.fix.default)
def trunc(b: Builder, result: Any, x: Value) -> Any:
    return _truncate(b, x.name, x.dtype)


@translates(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(b: Builder, result: Any, x: Any, y: Any) -> Any:
    if result.dtype.is_floating_point:
        return b.op("Floor", _binary(b, "Div", x, y, result.dtype))
    x, y = operand(b, x, result.dtype), operand(b, y, result.dtype)
    rest = b.op("Mod", x, y)  # of the divisor's sign, so that what is left divides evenly
    return b.op("Div", b.op("Sub", x, rest), y)


@translates(aten.remainder.Tensor, aten.remainder.Scalar)
def remainder(b: Builder, result: Any, x: Any, y: Any) -> Any:
    if not result.dtype.is_floating_point:
        return _binary(b, "Mod", x, y, result.dtype)
    whole = floor_divide(b, result, x, y)
    return b.op("Sub", operand(b, x, result.dtype), b.op("Mul", whole, operand(b, y, result.dtype)))


@translates(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(b: Builder, result: Any, x: Any, y: Any) -> Any:
    return b.op("Mod", operand(b, x, result.dtype), operand(b, y, result.dtype), fmod=1)


@translates(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power(b: Builder, result: Any, x: Any, y: Any) -> Any:
    if y == 2 and isinstance(x, Value):
        x = operand(b, x, result.dtype)
        return b.op("Mul", x, x)
    if y == 0.5 and isinstance(x, Value):
        return b.op("Sqrt", operand(b, x, result.dtype))
    return _binary(b, "Pow", x, y, result.dtype)


@translates(aten.addcdiv.default)
def addcdiv(b: Builder, result: Any, x: Value, y: Value, z: Value, value: float = 1) -> Any:
    if value == 1:
        return b.op("Add", x, b.op("Div", y, z))
    return b.op("Add", x, b.op("Div", b.op("Mul", y, scalar(b, value, x.dtype)), z))


@translates(aten.addcmul.default)
def addcmul(b: Builder, result: Any, x: Value, y: Value, z: Value, value: float = 1) -> Any:
    product = b.op("Mul", y, z)
    return b.op("Add", x, product if value == 1 else b.op("Mul", product, scalar(b, value, x.dtype)))


@translates(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(b: Builder, result: Any, x: Value, y: Value, weight: Any) -> Any:
    return b.op("Add", x, b.op("Mul", b.op("Sub", y, x), operand(b, weight, x.dtype)))


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


@translates(aten.square.default)
def square(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Mul", x, x)


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


@translates(aten.silu.default)
def silu(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Mul", x, b.op("Sigmoid", x))


@translates(aten.leaky_relu.default)
def leaky_relu(b: Builder, result: Any, x: Value, negative_slope: float = 0.01) -> Any:
    return b.op("LeakyRelu", x, alpha=float(negative_slope))


@translates(aten.elu.default)
def elu(b: Builder, result: Any, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    low = b.op("Sub", b.op("Exp", b.op("Mul", x, scalar(b, input_scale, x.dtype))), scalar(b, 1, x.dtype))
    low = b.op("Mul", low, scalar(b, alpha * scale, x.dtype))
    high = b.op("Mul", x, scalar(b, scale, x.dtype))
    return b.op("Where", b.op("Greater", x, scalar(b, 0, x.dtype)), high, low)


@translates(aten.softplus.default)
def softplus(b: Builder, result: Any, x: Value, beta: float = 1, threshold: float = 20) -> Any:
    scaled = b.op("Mul", x, scalar(b, beta, x.dtype))
    soft = b.op("Div", b.op("Softplus", scaled), scalar(b, beta, x.dtype))
    return b.op("Where", b.op("Greater", scaled, scalar(b, threshold, x.dtype)), x, soft)


@translates(aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor)
def clamp(b: Builder, result: Any, x: Value, low: Any = None, high: Any = None) -> Any:
    value: Any = operand(b, x, result.dtype)
    if low is not None:
        value = b.op("Max", value, operand(b, low, result.dtype))
    return value if high is None else b.op("Min", value, operand(b, high, result.dtype))


@translates(aten.clamp_min.default, aten.maximum.default, aten.clamp_min.Tensor)
def maximum(b: Builder, result: Any, x: Any, y: Any) -> Any:
    return _binary(b, "Max", x, y, result.dtype)


@translates(aten.clamp_max.default, aten.minimum.default, aten.clamp_max.Tensor)
def minimum(b: Builder, result: Any, x: Any, y: Any) -> Any:
    return _binary(b, "Min", x, y, result.dtype)


@translates(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(b: Builder, result: Any, x: Any, y: Any) -> Any:
    """ONNX cannot see the sign of a zero: minus zero counts as plus zero here, as epsilon's formula wants it."""
    size = b.op("Abs", operand(b, x, result.dtype))
    negative = b.op("Less", operand(b, y, result.dtype), scalar(b, 0, result.dtype))
    return b.op("Where", negative, b.op("Neg", size), size)


@translates(aten.threshold_backward.default)
def threshold_backward(b: Builder, result: Any, s: Value, x: Value, threshold: float) -> Any:
    above = b.op("Greater", x, scalar(b, threshold, x.dtype))
    return b.op("Where", above, s, scalar(b, 0, s.dtype))


_COMPARISONS = {
    aten.eq: ("Equal", False),
    aten.ne: ("Equal", True),
    aten.lt: ("Less", False),
    aten.le: ("LessOrEqual", False),
    aten.gt: ("Greater", False),
    aten.ge: ("GreaterOrEqual", False),
}


def _comparison(kind: str, negated: bool) -> Any:
    def translate(b: Builder, result: Any, x: Any, y: Any) -> Any:
        dtype = _common(x, y)
        if dtype == torch.bool and kind != "Equal":
            dtype = torch.int32
        found = _binary(b, kind, x, y, dtype)
        return b.op("Not", found) if negated else found

    translate.__name__ = kind.lower()
    return translate


for _packet, _how in _COMPARISONS.items():
    translates(_packet.Tensor, _packet.Scalar)(_comparison(*_how))


def _or(b: Builder, x: Any, y: Any) -> Any:
    return b.op("Or", operand(b, x, torch.bool), operand(b, y, torch.bool))


def _logic(kind: str, bits: str | None) -> Any:
    def translate(b: Builder, result: Any, x: Any, y: Any) -> Any:
        if bits is None or result.dtype == torch.bool:
            return b.op(kind, operand(b, x, torch.bool), operand(b, y, torch.bool))
        return _binary(b, bits, x, y, result.dtype)

    translate.__name__ = kind.lower()
    return translate


for _kind in ("And", "Or", "Xor"):
    translates(getattr(aten, f"logical_{_kind.lower()}").default)(_logic(_kind, None))
    _bitwise = getattr(aten, f"bitwise_{_kind.lower()}")
    translates(_bitwise.Tensor, _bitwise.Scalar)(_logic(_kind, f"Bitwise{_kind}"))


@translates(aten.logical_not.default)
def logical_not(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Not", b.cast(x, x.dtype, torch.bool))


@translates(aten.bitwise_not.default)
def bitwise_not(b: Builder, result: Any, x: Value) -> Any:
    return b.op("Not" if x.dtype == torch.bool else "BitwiseNot", x)


@translates(aten.isnan.default)
def isnan(b: Builder, result: Any, x: Value) -> Any:
    return b.op("IsNaN", x)


@translates(aten.isinf.default)
def isinf(b: Builder, result: Any, x: Value) -> Any:
    return b.op("IsInf", x)


@translates(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(b: Builder, result: Any, condition: Value, x: Any, y: Any) -> Any:
    condition_name = b.cast(condition, condition.dtype, torch.bool)
    return b.op("Where", condition_name, operand(b, x, result.dtype), operand(b, y, result.dtype))


@translates(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(b: Builder, result: Any, x: Value, mask: Value, value: Any) -> Any:
    return where(b, result, mask, value, x)


@translates(aten._to_copy.default)
def to_copy(b: Builder, result: Any, x: Value, **ignored: Any) -> Any:
    return b.cast(x, x.dtype, result.dtype)


@translates(aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default)
@translates(aten.contiguous.default)
def same(b: Builder, result: Any, x: Value, **ignored: Any) -> Any:
    return x.name


def _size_operation(kind: str) -> Any:
    """Arithmetic of open sizes, in whole numbers; where a fraction takes part, of tensors without dimensions."""

    def translate(b: Builder, result: Any, x: Any, y: Any) -> Any:
        if isinstance(result, torch.SymFloat):
            return Value(_binary(b, kind, x, y, torch.float32), torch.float32, ())
        return b.op(kind, *(item if isinstance(item, str) else b.ints(item) for item in (x, y)))

    translate.__name__ = kind.lower()
    return translate


for _function, _kind in (
    (operator.add, "Add"),
    (operator.sub, "Sub"),
    (operator.mul, "Mul"),
    (operator.floordiv, "Div"),  # sizes are not negative
    (operator.truediv, "Div"),
    (operator.mod, "Mod"),
):
    translates(_function)(_size_operation(_kind))


@translates(operator.neg)
def negative_size(b: Builder, result: Any, x: Any) -> Any:
    return b.op("Neg", x)


@translates(aten.scalar_tensor.default)
def scalar_tensor(b: Builder, result: Any, x: Any, **ignored: Any) -> Any:
    return operand(b, x, result.dtype)
