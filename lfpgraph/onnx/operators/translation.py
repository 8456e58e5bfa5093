"""A functional ATen graph to ONNX nodes: one walk, one translator for each operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from onnx import helper
from torch import Tensor, fx

from ...errors import OnnxError
from ..registry import TRANSLATORS
from . import arithmetic, elementwise, operands, places, shapes, slices, sums  # noqa: F401  (they fill the registry)
from .builder import Builder, Value, onnx_type

__all__ = ["tensor_info", "translate", "value_of"]


def value_of(name: str, fake: Tensor) -> Value:
    """A value of a known name for a fake tensor."""
    return Value(name, fake.dtype, tuple(_settled(n) for n in fake.shape))


def _settled(size: Any) -> Any:
    """A size as a number where tracing has found that it can be no other."""
    if isinstance(size, int):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_number else size


def translate(b: Builder, module: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Add a graph's nodes to the builder.

    Args:
        module: functional; its placeholders stand for `inputs` in order.
        inputs: a `Value` (or a Python number) for each placeholder.

    Returns:
        What the graph returns: a `Value` for each tensor, or None.

    Raises:
        OnnxError: operations without a translator, all of them named.
    """
    _refuse_unknown(module.graph)
    env: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(given)
        elif node.op == "get_attr":
            tensor = getattr(module, node.target)
            env[node] = Value(b.constant(tensor), tensor.dtype, tuple(tensor.shape))
        elif node.op == "call_function":
            env[node] = _call(b, node, env)
    results = list(module.graph.nodes)[-1].args[0]
    return [env[r] if isinstance(r, fx.Node) else None for r in results]


def _refuse_unknown(graph: fx.Graph) -> None:
    unknown = sorted({str(n.target) for n in graph.nodes if n.op == "call_function" and n.target not in TRANSLATORS})
    if unknown:
        raise OnnxError(
            f"no ONNX form is known for {', '.join(unknown)}; register one with lfpgraph.onnx.registry.translates"
        )


def _call(b: Builder, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    result = node.meta.get("val")
    if isinstance(result, int | torch.SymInt) and not isinstance(result, bool) and isinstance(_settled(result), int):
        return _settled(result)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])  # type: ignore[misc]
    try:
        found = TRANSLATORS[node.target](b, result, *args, **kwargs)
    except (NotImplementedError, KeyError) as error:
        raise OnnxError(f"{node.target} ({node.name}) has no ONNX form: {error}") from error
    if isinstance(result, Tensor):
        return value_of(found.name if isinstance(found, Value) else found, result)
    if isinstance(result, list | tuple):
        return [value_of(name, part) if isinstance(part, Tensor) else name for name, part in zip(found, result)]
    return found


def tensor_info(name: str, value: Any, axes: Mapping[str, str]) -> Any:
    """ONNX's description of an input or output like `value`; `axes` gives readable names to open sizes."""
    sizes = [_settled(n) for n in value.shape]
    shape = [n if isinstance(n, int) else axes.get(str(n), str(n)) for n in sizes]
    return helper.make_tensor_value_info(name, onnx_type(value.dtype), shape)
