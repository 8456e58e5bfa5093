"""ATen's operations in C: what a `writer` may write.

A tensor is [rows, n * width] and its value a list of n: for each width, the name of a number in C, or a number that is known.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["BY_ENTRY", "BY_ROW", "KNOWN", "UnknownOperation", "Origin", "Value", "apart", "literal"]

aten = torch.ops.aten
Value = str | float


class UnknownOperation(Exception):
    """One that is in no table."""


def literal(x: Value) -> str:
    """A number in C."""
    if isinstance(x, str):
        return x
    if math.isnan(x):
        return "(T)(0.0 / 0.0)"
    return f"((T){x!r})" if math.isfinite(x) else f"((T)({'-' if x < 0 else ''}1.0 / 0.0))"


def _sum(a: Value, b: Value, alpha: float = 1.0) -> Value:
    if isinstance(a, float) and isinstance(b, float):
        return a + b * alpha
    return f"{literal(a)} + {literal(_product(b, float(alpha)))}"


def _product(a: Value, b: Value) -> Value:
    if isinstance(a, float) and isinstance(b, float):
        return a * b
    for one, other in ((a, b), (b, a)):
        if one in (0.0, 1.0):
            return other if one else 0.0
    return f"({literal(a)} * {literal(b)})"


def _sum_with_quotient(s: Value, a: Value, b: Value, value: float = 1.0) -> Value:
    return s if a == 0.0 else f"{literal(s)} + {literal(float(value))} * {literal(a)} / {literal(b)}"


def _form(form: str) -> Callable[..., str]:
    return lambda *values: form.format(*map(literal, values))


# What is worked out entry by entry. A comparison is 1 or 0.
BY_ENTRY: dict[Any, Callable[..., Value]] = {
    aten.abs.default: _form("{0} < 0 ? -{0} : {0}"),
    aten.add.Tensor: _sum,
    aten.addcdiv.default: _sum_with_quotient,
    aten.copysign.Tensor: _form("with_sign_of({}, {})"),
    aten.div.Tensor: _form("{} / {}"),
    aten.masked_fill.Scalar: _form("{1} ? {2} : {0}"),
    aten.maximum.default: _form("{0} > {1} || {0} != {0} ? {0} : {1}"),  # NaN is the largest
    aten.mul.Tensor: _product,
    aten.neg.default: _form("-{}"),
    aten.reciprocal.default: _form("1 / {}"),
    aten.relu.default: _form("{0} < 0 ? (T)0 : {0}"),
    aten.sigmoid.default: _form("sigmoid({})"),
    aten.sigmoid_backward.default: _form("{0} * (1 - {1}) * {1}"),
    aten.sub.Tensor: lambda a, b, alpha=1.0: _sum(a, b, -alpha),
    aten.tanh.default: _form("hyperbolic({})"),
    aten.tanh_backward.default: _form("{0} * (1 - {1} * {1})"),
    aten.threshold_backward.default: _form("{1} > {2} ? {0} : (T)0"),
    aten.where.self: _form("{} ? {} : {}"),
}
for _name, _sign in {"eq": "==", "ge": ">=", "gt": ">", "le": "<=", "lt": "<", "ne": "!="}.items():
    for _overload in ("Scalar", "Tensor"):
        BY_ENTRY[getattr(getattr(aten, _name), _overload)] = _form(f"{{}} {_sign} {{}} ? (T)1 : (T)0")
# What is one known number at each entry.
KNOWN: dict[Any, Callable[..., float]] = {
    aten.full.default: lambda shape, value: value,
    aten.full_like.default: lambda x, value: value,
    aten.ones_like.default: lambda *_: 1,
    aten.scalar_tensor.default: lambda value: value,
    aten.zeros.default: lambda *_: 0,
    aten.zeros_like.default: lambda *_: 0,
}


Origin = tuple[Any, tuple[Value, ...]]  # an operation, and what it was given
# f(x) = scale * sigmoid(scale * x), but for a constant: functions whose values at two places differ by a formula with one exp.
_SCALES = {aten.sigmoid.default: 1.0, aten.tanh.default: 2.0}
_FAR = 8.0  # how far from x such places may be


def apart(origins: dict[str, Origin], a: Value, b: Value) -> str | None:
    """f(x + c) - f(x - c), of which a and b are the terms, without the loss of digits of a difference; None if it is no such one.

    With e = exp(-abs(x)), sigmoid(x + c) - sigmoid(x - c) = 2 sinh(c) e / ((1 + exp(-c) e) (1 + exp(c) e)).
    """
    (f, at), (g, other) = (origins.get(str(value), (None, (0.0,))) for value in (a, b))
    if f is not g or f not in _SCALES:
        return None
    (x, up), (y, down) = (_moved(origins, values[0]) for values in (at, other))
    if x != y or up != -down or not 0 < abs(up) <= _FAR or not isinstance(x, str):
        return None
    scale = _SCALES[f]
    numbers = scale * 2 * math.sinh(scale * up), math.exp(-scale * up), math.exp(scale * up)
    return f"apart({literal(_product(x, scale))}, {', '.join(map(literal, numbers))})"


def _moved(origins: dict[str, Origin], x: Value) -> tuple[Value, float]:
    """What a value is a known number away from, and that number."""
    op, given = origins.get(str(x), (None, ()))
    if op in (aten.add.Tensor, aten.sub.Tensor) and isinstance(given[1], float):
        return given[0], given[1] if op is aten.add.Tensor else -given[1]
    return x, 0.0


def _split(width: int, x: list[Value], size: int, dim: int = 0) -> list[list[Value]]:
    n = _widths(size, dim, width)
    return [x[k : k + n] for k in range(0, len(x), n)]


def _slice(width: int, x: list[Value], dim: int = 0, start: int = 0, end: int = sys.maxsize) -> list[Value]:
    return x[_widths(start, dim, width) : _widths(min(end, len(x) * width), dim, width)]


def _cat(width: int, parts: Sequence[list[Value]], dim: int = 0) -> list[Value]:
    _widths(0, dim, width)
    return [value for part in parts for value in part]


def _widths(size: int, dim: int, width: int) -> int:
    """How many whole widths a size is, along a row."""
    if dim not in (1, -1) or size % width:
        raise UnknownOperation(f"a cut or joint of dimension {dim} at {size}")
    return size // width


# What cuts and joins rows; given the width first.
BY_ROW: dict[Any, Callable[..., Any]] = {
    aten.cat.default: _cat,
    aten.clone.default: lambda width, x: x,
    aten.detach.default: lambda width, x: x,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.sym_size.int: lambda *_: None,  # the number of rows, which nothing depends on but the shape of what is known
    operator.getitem: lambda width, parts, i: parts[i],
}
