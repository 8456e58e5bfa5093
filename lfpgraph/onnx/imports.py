"""ONNX operators as functions of torch tensors: the table that `load` runs a file by.

A function gets its `Node` and the operator's inputs, None for one left out, and returns its output or a tuple of them.
Small constants and shapes travel as `Known`, Python numbers that may be open, so that a model traces for every batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import OnnxError

__all__ = ["IMPORTERS", "Known", "Node", "imports", "numbers", "tensor_of"]

IMPORTERS: dict[str, Callable[..., Any]] = {}


@dataclass
class Node:
    """What a function may know of its node: operator, name, attributes, the file's opset, how many outputs are read."""

    kind: str
    name: str
    version: int
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


class Known:
    """A small tensor whose numbers Python knows: a shape, an axis, a constant; `scalar` if it has no dimension."""

    def __init__(self, items: list[Any], scalar: bool = False, dtype: torch.dtype = torch.int64) -> None:
        self.items, self.scalar, self.dtype = items, scalar, dtype

    @property
    def whole(self) -> bool:
        return not self.dtype.is_floating_point


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


def tensor_of(value: Any) -> Any:
    """What Python knows as a tensor; everything else as it is."""
    if not isinstance(value, Known):
        return value
    if all(isinstance(item, int | float) for item in value.items):
        return torch.tensor(value.items[0] if value.scalar else value.items, dtype=value.dtype)
    items = [torch.scalar_tensor(item, dtype=value.dtype) for item in value.items]
    return items[0] if value.scalar else torch.stack(items)


def numbers(node: Node, value: Any) -> list[Any]:
    """The numbers of an input that must be known while tracing: a shape, axes, pads."""
    if isinstance(value, Known):
        return value.items
    if isinstance(value, Tensor):
        return list(value.reshape(-1).tolist())
    raise OnnxError(f"{node.kind} {node.name!r} needs numbers, not {type(value).__name__}")
