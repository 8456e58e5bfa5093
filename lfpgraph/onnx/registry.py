"""Which function translates which ATen operation to ONNX operators, which are taken apart first, and ONNX's dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["DECOMPOSITIONS", "DTYPES", "TRANSLATORS", "decomposes", "translates"]

Function = Callable[..., Any]
TRANSLATORS: dict[Any, Function] = {}
DECOMPOSITIONS: dict[Any, Function] = {}
DTYPES = {  # by ONNX's number
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 16: torch.bfloat16,
}  # fmt: skip


def _register(table: dict[Any, Function], operations: tuple[Any, ...]) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for operation in operations:
            if operation in table:
                raise ValueError(f"{operation} is registered twice")
            table[operation] = function
        return function

    return register


def translates(*operations: Any) -> Callable[[Function], Function]:
    """Register a translator for operations that torch's own exporter cannot translate, or translates to more or slower nodes.

    It has the operation's own signature and calls operators of `onnxscript.opset20`. Tensors are onnx_ir's values, with dtype
    and shape; an open size is an int64 value without dimensions. It returns a value, or a list of values.
    """
    return _register(TRANSLATORS, operations)


def decomposes(*operations: Any) -> Callable[[Function], Function]:
    """Register a function of the operation's own signature that does its work in operations with translators."""
    return _register(DECOMPOSITIONS, operations)
