"""Which function translates which ATen operation to ONNX operators, which are taken apart first, and ONNX's dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

__all__ = ["DECOMPOSITIONS", "DTYPES", "SAME_NAMES", "TRANSLATORS", "decomposes", "translates"]

Translator = Callable[..., Any]
TRANSLATORS: dict[Any, Translator] = {}
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}
# Operators of one tensor that torch calls by the same name in lower case.
SAME_NAMES = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log",
    "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh",
)  # fmt: skip
DTYPES = {  # by ONNX's number
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def translates(*operations: Any) -> Callable[[Translator], Translator]:
    """Register a translator for operations; a packet (`aten.add`) stands for all its overloads.

    It is called as `translator(builder, result, *args, **kwargs)`: `result` is the fake value of the node, tensor
    arguments are `Value`s, open sizes names of tensors of shape [1]. It returns the output's name, or a list of names.
    """

    def register(translator: Translator) -> Translator:
        for operation in operations:
            overloads = [operation]
            if isinstance(operation, OpOverloadPacket):
                overloads = [getattr(operation, name) for name in operation.overloads()]
            for overload in overloads:
                if overload in TRANSLATORS:
                    raise ValueError(f"{overload} has a translator already")
                if isinstance(overload, OpOverload) and overload._schema.name.endswith("_"):
                    continue
                TRANSLATORS[overload] = translator
        return translator

    return register


def decomposes(operation: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of the operation's own signature that does its work in operations with translators."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        DECOMPOSITIONS[operation] = function
        return function

    return register
