"""Translators of arithmetic, of tensors and of open sizes, and of comparisons, logic and choices."""

from __future__ import annotations

import operator
from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import binary, common_dtype, operand, scalar

aten = torch.ops.aten


def _times(b: Builder, y: Any, alpha: float, dtype: torch.dtype) -> Any:
    value = operand(b, y, dtype)
    return value if alpha == 1 else b.op("Mul", value, scalar(b, alpha, dtype))


@translates(aten.add.Tensor, aten.add.Scalar)
def add(b: Builder, result: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    if isinstance(y, float | int) and y == 0:  # adding zero changes minus zero alone
        return operand(b, x, result.dtype)
    kind = "Or" if result.dtype == torch.bool else "Add"
    return b.op(kind, operand(b, x, result.dtype), _times(b, y, alpha, result.dtype))


@translates(aten.sub.Tensor, aten.sub.Scalar)
def sub(b: Builder, result: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    return b.op("Sub", operand(b, x, result.dtype), _times(b, y, alpha, result.dtype))


def _pair(kind: str, of_booleans: str | None = None) -> Any:
    def translate(b: Builder, result: Any, x: Any, y: Any) -> Any:
        return binary(b, of_booleans or kind if result.dtype == torch.bool else kind, x, y, result.dtype)

    return translate


translates(aten.mul.Tensor, aten.mul.Scalar)(_pair("Mul", "And"))
translates(aten.clamp_min.default, aten.maximum.default, aten.clamp_min.Tensor)(_pair("Max"))
translates(aten.clamp_max.default, aten.minimum.default, aten.clamp_max.Tensor)(_pair("Min"))


@translates(aten.div.Tensor, aten.div.Scalar)
def div(b: Builder, result: Any, x: Any, y: Any) -> Any:
    return binary(b, "Div", x, y, result.dtype)


@translates(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(b: Builder, result: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(b, result, x, y)
    if rounding_mode == "floor":
        return floor_divide(b, result, x, y)
    quotient = binary(b, "Div", x, y, result.dtype)
    return _truncate(b, quotient, result.dtype)


def _truncate(b: Builder, x: str, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point:
        return x
    return str(b.op("Mul", b.op("Sign", x), b.op("Floor", b.op("Abs", x))))


@translates(aten.trunc.default)
def trunc(b: Builder, result: Any, x: Value) -> Any:
    return _truncate(b, x.name, x.dtype)


@translates(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(b: Builder, result: Any, x: Any, y: Any) -> Any:
    if result.dtype.is_floating_point:
        return b.op("Floor", binary(b, "Div", x, y, result.dtype))
    x, y = operand(b, x, result.dtype), operand(b, y, result.dtype)
    rest = b.op("Mod", x, y)  # of the divisor's sign, so that what is left divides evenly
    return b.op("Div", b.op("Sub", x, rest), y)


@translates(aten.remainder.Tensor, aten.remainder.Scalar)
def remainder(b: Builder, result: Any, x: Any, y: Any) -> Any:
    if not result.dtype.is_floating_point:
        return binary(b, "Mod", x, y, result.dtype)
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
    return binary(b, "Pow", x, y, result.dtype)


@translates(aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor)
def clamp(b: Builder, result: Any, x: Value, low: Any = None, high: Any = None) -> Any:
    value: Any = operand(b, x, result.dtype)
    if low is not None:
        value = b.op("Max", value, operand(b, low, result.dtype))
    return value if high is None else b.op("Min", value, operand(b, high, result.dtype))


def _size_operation(kind: str) -> Any:
    """Arithmetic of open sizes, in whole numbers; where a fraction takes part, of tensors without dimensions."""

    def translate(b: Builder, result: Any, x: Any, y: Any) -> Any:
        if isinstance(result, torch.SymFloat):
            return Value(binary(b, kind, x, y, torch.float32), torch.float32, ())
        return b.op(kind, b.vector(x), b.vector(y))

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
        dtype = common_dtype(x, y)
        if dtype == torch.bool and kind != "Equal":
            dtype = torch.int32
        found = binary(b, kind, x, y, dtype)
        return b.op("Not", found) if negated else found

    return translate


for _packet, _how in _COMPARISONS.items():
    translates(_packet.Tensor, _packet.Scalar)(_comparison(*_how))


def _logic(kind: str, bits: str | None) -> Any:
    def translate(b: Builder, result: Any, x: Any, y: Any) -> Any:
        if bits is None or result.dtype == torch.bool:
            return binary(b, kind, x, y, torch.bool)
        return binary(b, bits, x, y, result.dtype)

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


def _question(kind: str) -> Any:
    return lambda b, result, x: b.op(kind, x)


translates(aten.isnan.default)(_question("IsNaN"))
translates(aten.isinf.default)(_question("IsInf"))


@translates(aten.where.self)
def where(b: Builder, result: Any, condition: Value, x: Any, y: Any) -> Any:
    condition_name = b.cast(condition, condition.dtype, torch.bool)
    return b.op("Where", condition_name, operand(b, x, result.dtype), operand(b, y, result.dtype))
