"""ONNX operators as functions of torch tensors: the table that `load` runs a file by.

A function gets its `Node` and the operator's inputs, None for one left out, and returns its output or a tuple of them.
Small constants and shapes are passed on as `Known`: Python numbers, or symbols for open sizes. So a model traces for
every batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from ...errors import OnnxError, one_line
from ..registry import DTYPES

__all__ = [
    "IMPORTERS", "LARGEST", "OWN", "Known", "Node", "axes_of", "check_node", "dtype_of", "imports", "known", "modest",
    "numbers", "operator_of", "pad_widths", "refused", "tensor_of",
]  # fmt: skip

OWN = ("", "ai.onnx")  # ONNX's own domain
IMPORTERS: dict[str, Callable[..., Any]] = {}
LARGEST = 2**29  # elements of one tensor; a few numbers in a file can ask for any size
_MOST = 2**10  # numbers that Python goes through one by one


@dataclass
class Node:
    """What a function may know of its node: operator, name, the file's opset, attributes, how many outputs are read."""

    kind: str
    name: str
    version: int
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


class Known:
    """A small tensor whose numbers Python knows: a shape, an axis, a constant. `items` is an array of them."""

    def __init__(self, items: Any, dtype: torch.dtype = torch.int64) -> None:
        self.items, self.dtype = np.array(items, object), dtype

    @property
    def scalar(self) -> bool:
        return not self.items.ndim

    @property
    def whole(self) -> bool:
        return not self.dtype.is_floating_point


def operator_of(node: Any) -> str:
    """The name of a node's operator, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in OWN else f"{node.domain}.{node.op_type}"


def refused(node: Node, why: str) -> OnnxError:
    """The error of a node."""
    return OnnxError(f"{node.kind} {node.name!r} {why}")


def check_node(node: Any, version: int) -> None:
    """Refuse a node that its operator does not allow: inputs, outputs or attributes missing, too many, of another type."""
    if operator_of(node) not in IMPORTERS or node.domain not in OWN or not onnx.defs.has(node.op_type, version, ""):
        return
    context, bare = onnx.checker.C.CheckerContext(), onnx.NodeProto(op_type=node.op_type)
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": version}
    bare.input[:], bare.output[:] = node.input, node.output
    for a in node.attribute:  # graphs are checked on their own
        graph = onnx.AttributeProto(name=a.name, type=a.type, g=onnx.GraphProto(name="graph"))
        bare.attribute.append(graph if a.HasField("g") else a)
    try:
        onnx.checker.check_node(bare, context)
    except onnx.checker.ValidationError as error:
        raise OnnxError(f"{node.op_type} {node.name!r} is not as ONNX has it: {one_line(error)}") from error


def imports(*kinds: str, known: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for operators; with `known` it takes `Known` inputs as they are, else as tensors."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def on_tensors(node: Node, *inputs: Any) -> Any:
            return function(node, *(tensor_of(x) for x in inputs))

        for kind in kinds:
            if kind in IMPORTERS:
                raise ValueError(f"{kind} is registered twice")
            IMPORTERS[kind] = function if known else on_tensors
        return function

    return register


def known(items: Any, dtype: torch.dtype) -> Any:
    """A `Known`; a tensor where that has grown large."""
    found = Known(items, dtype)
    return found if found.items.size <= _MOST else tensor_of(found)


def tensor_of(value: Any) -> Any:
    """A `Known` as a tensor; everything else as it is."""
    if not isinstance(value, Known):
        return value
    if all(isinstance(item, int | float) for item in value.items.flat):
        found = torch.tensor(value.items.tolist(), dtype=value.dtype)
    else:
        items = [torch.scalar_tensor(item, dtype=value.dtype) for item in value.items.flat]
        found = items[0] if value.scalar else torch.stack(items)
    return found if found.shape == value.items.shape else found.reshape(value.items.shape)


def numbers(node: Node, value: Any) -> list[Any]:
    """The numbers of an input that must be known while tracing: a shape, axes, pads."""
    if isinstance(value, Known):
        return list(value.items.flat)
    if isinstance(value, Tensor):
        return list(value.reshape(-1).tolist())
    raise OnnxError(f"{node.kind} {node.name!r} needs numbers, not {type(value).__name__}")


def axes_of(node: Node, given: Any) -> list[int] | None:
    """Axes, from the input that newer opsets have or the attribute of older ones."""
    found = node.get("axes") if given is None else numbers(node, given)
    return None if found is None else [int(a) for a in found]


def modest(node: Node, shape: list[Any]) -> list[Any]:
    """The shape that a file asks for; refused where it is negative or asks for more than `LARGEST` elements."""
    known = [n for n in shape if isinstance(n, int)]
    if any(n < 0 for n in known):
        raise OnnxError(f"{node.kind} {node.name!r} asks for a negative size: {shape}")
    count = math.prod(known)
    if count > LARGEST:
        raise OnnxError(f"{node.kind} {node.name!r} asks for {count:.3g} elements, more than {LARGEST:.3g}")
    return shape


def dtype_of(number: int) -> torch.dtype:
    """torch's dtype for ONNX's number.

    Raises:
        OnnxError: torch has none.
    """
    if number not in DTYPES:
        raise OnnxError(f"tensors of ONNX's type {number} are not supported; supported: {sorted(DTYPES)}")
    return DTYPES[number]


def pad_widths(before: list[Any], after: list[Any]) -> list[Any]:
    """Padding before and after each axis in the order of torch's `pad`, last axis first."""
    return [width for pair in reversed(list(zip(before, after))) for width in pair]
