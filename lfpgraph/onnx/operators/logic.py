"""Translators of comparisons, logic and choices."""

from __future__ import annotations

from typing import Any

import torch

from ..registry import translates
from .builder import Builder, Value
from .operands import binary, common_dtype, operand

aten = torch.ops.aten

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


@translates(aten.isnan.default)
def isnan(b: Builder, result: Any, x: Value) -> Any:
    return b.op("IsNaN", x)


@translates(aten.isinf.default)
def isinf(b: Builder, result: Any, x: Value) -> Any:
    return b.op("IsInf", x)


@translates(aten.where.self)
def where(b: Builder, result: Any, condition: Value, x: Any, y: Any) -> Any:
    condition_name = b.cast(condition, condition.dtype, torch.bool)
    return b.op("Where", condition_name, operand(b, x, result.dtype), operand(b, y, result.dtype))
