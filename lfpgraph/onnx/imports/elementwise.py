"""Elementwise ONNX operators in torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from ..registry import DTYPES
from .table import Known, Node, dtype_of, imports, known, numbers, tensor_of

# Operators of one tensor that torch calls by the same name in lower case.
_SAME_NAMES = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log",
    "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh",
)  # fmt: skip
# Functions of the inputs alone.
_PLAIN: dict[str, Callable[..., Any]] = {
    **{kind: getattr(torch, kind.lower()) for kind in _SAME_NAMES},
    "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and, "BitwiseNot": torch.bitwise_not, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Det": torch.linalg.det, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish, "IsNaN": torch.isnan, "Less": torch.lt, "LessOrEqual": torch.le, "MatMul": torch.matmul,
    "Mish": F.mish, "NonZero": lambda x: torch.nonzero(x).t(), "Not": torch.logical_not, "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x), "Softsign": F.softsign, "Xor": torch.logical_xor,
    "Softplus": lambda x: torch.where(x > 20, x, torch.log1p(torch.exp(torch.clamp(x, max=20)))),
}  # fmt: skip


# Functions of the inputs and of attributes, these with what the operator takes where the file has none.
_WITH_ATTRIBUTES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "BitShift": (lambda x, y, side: getattr(torch, f"bitwise_{side.lower()}_shift")(x, y), {"direction": "RIGHT"}),
    "Celu": (lambda x, alpha: F.celu(x, alpha), {"alpha": 1.0}),
    "Elu": (lambda x, alpha: F.elu(x, alpha), {"alpha": 1.0}),
    "Gelu": (lambda x, approximate: F.gelu(x, approximate=approximate), {"approximate": "none"}),
    "HardSigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1), {"alpha": 0.2, "beta": 0.5}),
    "IsInf": (lambda x, low, high: (x == float("-inf")) & bool(low) | (x == float("inf")) & bool(high),
              {"detect_negative": 1, "detect_positive": 1}),
    "LeakyRelu": (lambda x, alpha: F.leaky_relu(x, alpha), {"alpha": 0.01}),
    "Mod": (lambda x, y, fmod: torch.fmod(x, y) if fmod else torch.remainder(x, y), {"fmod": 0}),
    "Selu": (lambda x, alpha, gamma: gamma * torch.where(x > 0, x, alpha * (torch.exp(torch.clamp(x, max=0)) - 1)),
             {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "Shrink": (lambda x, bias, edge: torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, 0)).to(x.dtype),
               {"bias": 0.0, "lambd": 0.5}),
    "Swish": (lambda x, alpha: x * torch.sigmoid(alpha * x), {"alpha": 1.0}),
    "ThresholdedRelu": (lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), {"alpha": 1.0}),
}  # fmt: skip
_ARITHMETIC = {"Add": (torch.add, operator.add), "Sub": (torch.sub, operator.sub), "Mul": (torch.mul, operator.mul)}
_COMPARISONS = {  # also among numbers that Python knows, so that branches on sizes are taken while tracing
    "And": lambda a, b: bool(a and b), "Or": lambda a, b: bool(a or b), "Not": operator.not_, "Equal": operator.eq,
    "Greater": operator.gt, "GreaterOrEqual": operator.ge, "Less": operator.lt, "LessOrEqual": operator.le,
}  # fmt: skip


def _with_attributes(function: Callable[..., Any], attributes: dict[str, Any]) -> Callable[..., Any]:
    return lambda node, *inputs: function(*inputs, *(node.get(name, usual) for name, usual in attributes.items()))


def _arithmetic(function: Any, python: Any) -> Any:
    def run(node: Node, x: Any, y: Any) -> Any:
        found = _among_known(python, x, y)
        return _any_integer(function)(*_operands(x, y)) if found is None else found

    return run


def _operands(x: Any, y: Any) -> tuple[Any, Any]:
    """Tensors, or a tensor and a Python number where that is the same."""
    x = tensor_of(x)
    if isinstance(y, Known) and y.scalar and y.dtype == x.dtype and isinstance(y.items.item(), int | float):
        return x, y.items.item()
    return x, tensor_of(y)


def _among_known(python: Any, *given: Any, dtype: torch.dtype | None = None) -> Any:
    """What a function makes of whole numbers that Python knows; None if it knows not all of them."""
    if not all(isinstance(x, Known) and x.whole for x in given):
        return None
    return known(np.frompyfunc(python, len(given), 1)(*(x.items for x in given)), dtype or given[-1].dtype)


def _any_integer(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for unsigned integers too, which torch adds and compares only in wider ones."""

    def run(*inputs: Any) -> Any:
        found = {x.dtype for x in inputs if isinstance(x, Tensor)} & _WIDER.keys()
        if not found:
            return function(*inputs)
        dtype = found.pop()
        out = function(*(x.to(_WIDER[dtype]) if isinstance(x, Tensor) and x.dtype == dtype else x for x in inputs))
        return out.to(dtype) if out.dtype == _WIDER[dtype] else out

    return run


def _comparison(function: Any, python: Any) -> Any:
    def run(node: Node, *inputs: Any) -> Any:
        found = _among_known(lambda *numbers: bool(python(*numbers)), *inputs, dtype=torch.bool)
        return function(*map(tensor_of, inputs)) if found is None else found

    return run


_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}
for _kind, _function in _PLAIN.items():
    if _kind in _COMPARISONS:
        imports(_kind, known=True)(_comparison(_any_integer(_function), _COMPARISONS[_kind]))
    else:
        imports(_kind)(_with_attributes(_any_integer(_function), {}))
for _kind, _row in _WITH_ATTRIBUTES.items():
    imports(_kind)(_with_attributes(_any_integer(_row[0]), _row[1]))
imports("Identity", known=True)(lambda node, x: x)
for _kind, _both in _ARITHMETIC.items():
    imports(_kind, known=True)(_arithmetic(*_both))


@imports("Where", known=True)
def where(node: Node, condition: Any, x: Any, y: Any) -> Any:
    found = _among_known(lambda c, a, b: a if c else b, condition, x, y)
    return torch.where(tensor_of(condition), tensor_of(x), tensor_of(y)) if found is None else found


@imports("Div", known=True)
def div(node: Node, x: Any, y: Any) -> Any:
    found = _among_known(lambda a, b: a // b if isinstance(b, int) and b else a, x, y)  # sizes are not negative
    if found is not None:
        return found
    x, y = _operands(x, y)
    return torch.div(x, y) if x.is_floating_point() else _any_integer(partial(torch.div, rounding_mode="trunc"))(x, y)


@imports("Pow", known=True)
def power(node: Node, x: Any, y: Any) -> Any:
    x = tensor_of(x)
    if isinstance(y, Known) and y.items.size == 1 and isinstance(y.items.item(), int | float):
        exponent = y.items.item()
        return torch.pow(x, exponent if x.is_floating_point() else int(exponent)).to(x.dtype)
    return torch.pow(x, tensor_of(y)).to(x.dtype)


@imports("Sum", "Mean", "Max", "Min")
def several(node: Node, *items: Any) -> Any:
    total = items[0]
    join: Any = {"Sum": torch.add, "Mean": torch.add, "Max": torch.maximum, "Min": torch.minimum}[node.kind]
    for x in items[1:]:
        total = _any_integer(join)(total, x)
    return total / len(items) if node.kind == "Mean" else total


@imports("Clip", known=True)
def clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    x = tensor_of(x)
    low, high = (node.get("min") if low is None else low), (node.get("max") if high is None else high)
    for bound, how in ((low, torch.maximum), (high, torch.minimum)):
        if isinstance(bound, Known):
            bound = bound.items.item()
        if isinstance(bound, Tensor):
            x = how(x, bound.reshape(()).to(x.dtype))
        elif bound is not None:
            x = torch.clamp(x, min=bound) if how is torch.maximum else torch.clamp(x, max=bound)
    return x


@imports("Dropout", known=True)
def dropout(node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> Any:
    if training is not None and any(numbers(node, training)) and (ratio is None or any(numbers(node, ratio))):
        raise OnnxError(f"Dropout {node.name!r} is in training mode; export the model for inference.")
    return (x, torch.ones_like(x, dtype=torch.bool)) if node.outputs > 1 else x


@imports("Cast", known=True)
def cast(node: Node, x: Any) -> Any:
    dtype = dtype_of(node.get("to"))
    if isinstance(x, Known) and not dtype.is_floating_point:
        turn: Any = bool if dtype == torch.bool else int
        return Known(np.frompyfunc(lambda v: turn(v) if isinstance(v, int | float) else v, 1, 1)(x.items), dtype)
    return tensor_of(x).to(dtype)


@imports("CastLike")
def cast_like(node: Node, x: Tensor, like: Tensor) -> Any:
    if like.dtype not in DTYPES.values():  # torch rounds beyond the range of eight bits otherwise than ONNX
        raise OnnxError(f"CastLike {node.name!r} to {like.dtype} is not supported")
    return x.to(like.dtype)
