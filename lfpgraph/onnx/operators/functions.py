"""ONNX's operators, and the functions by which torch's own exporter writes operations of ATen in them."""

from __future__ import annotations

import functools
from typing import Any

from onnxscript import opset20
from torch.onnx._internal.exporter._registration import ONNXRegistry

from ...threads.silence import quiet
from .builder import OPSET

__all__ = ["op", "torchs"]

op: Any = opset20  # the version is `OPSET`


@functools.cache
def _registry() -> ONNXRegistry:
    with quiet():  # it warns that torchvision is not installed
        return ONNXRegistry.from_torchlib(OPSET)


def torchs(operation: Any) -> Any:
    """Torch's translator of an operation of real numbers, None where it has none."""
    return next((found.onnx_function for found in _registry().get_decomps(operation) if not found.is_complex), None)
