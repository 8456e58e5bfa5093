"""A functional ATen graph to ONNX nodes: one walk, one translator for each operation, most of them torch's own.

Torch's exporter has a registry of functions that write an operation in ONNX's operators; `translators` holds the few that it
lacks or that are better written otherwise. Operands must have the dtype in which torch computes, which is seen to here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from onnxscript import evaluator
from torch import Tensor, fx

from ...errors import OnnxError, one_line
from ..registry import TRANSLATORS
from . import translators  # noqa: F401  (it fills the registry)
from .builder import Builder, settled
from .functions import op, torchs

__all__ = ["packed", "translate"]

aten = torch.ops.aten
# Worked out in their result's dtype.
_SUMS = {aten.cat, aten.cumsum, aten.mean, aten.prod, aten.sum, aten._softmax, aten._log_softmax}
_ORDERS = {aten.lt, aten.le, aten.gt, aten.ge}


def translate(b: Builder, module: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Add a graph's nodes to the builder.

    Args:
        module: functional; its placeholders stand for `inputs` in order.
        inputs: a value (or a Python number) for each placeholder.

    Returns:
        What the graph returns: a value for each tensor, or None.

    Raises:
        OnnxError: operations without a translator, all of them named.
    """
    targets = {n.target for n in module.graph.nodes if n.op == "call_function" and n.target is not operator.getitem}
    if unknown := sorted(str(t) for t in targets if t not in TRANSLATORS and torchs(t) is None):
        raise OnnxError(f"no ONNX form is known for {', '.join(unknown)}; see lfpgraph.onnx.registry.translates")
    env: dict[fx.Node, Any] = {}
    given = iter(inputs)
    with evaluator.default_as(b):
        for node in module.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(given)
            elif node.op == "get_attr":
                env[node] = b.constant(getattr(module, node.target))
            elif node.op == "call_function":
                env[node] = _call(b, node, env)
    results = list(module.graph.nodes)[-1].args[0]
    return [env[r] if isinstance(r, fx.Node) and isinstance(r.meta["val"], Tensor) else None for r in results]


def packed(b: Builder, tensor: Tensor, how: str) -> Any:
    """A value for a tensor that is stored as float32, as float16, or as int8 with a scale for each row; vectors stay."""
    if how == "float32" or tensor.dtype != torch.float32 or tensor.dim() < 2:
        return b.constant(tensor)
    with evaluator.default_as(b):
        if how == "float16":
            return b.describe(op.Cast(b.constant(tensor.half()), to=from_torch_dtype(torch.float32)), tensor)
        scale = tensor.detach().abs().flatten(1).amax(1).clamp_min(1e-30) / 127
        whole = torch.round(tensor.detach() / scale.reshape(-1, *[1] * (tensor.dim() - 1))).to(torch.int8)
        return b.describe(op.DequantizeLinear(b.constant(whole), b.constant(scale), axis=0), tensor)


def _call(b: Builder, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    result, target = node.meta.get("val"), node.target
    if isinstance(result, int | torch.SymInt) and not isinstance(result, bool) and isinstance(settled(result), int):
        return settled(result)
    if target is operator.getitem:
        return env[node.args[0]][node.args[1]]  # type: ignore[index]
    own = TRANSLATORS.get(target)
    args, kwargs = fx.node.map_arg((_operands(node, env), node.kwargs), lambda n: env[n])  # type: ignore[misc]
    if own is None:
        args = _plain(args)
        kwargs = {name: -1 if name == "dtype" and v is None else _plain(v) for name, v in kwargs.items()}
    try:
        found = (own or torchs(target))(*args, **kwargs)
    except Exception as error:  # torch's functions raise what they like
        reason = one_line(getattr(error, "__cause__", None) or error)
        raise OnnxError(f"{target} ({node.name}) has no ONNX form: {reason}") from error
    if not isinstance(result, list | tuple):
        return b.describe(found, result)
    return [b.describe(*pair) if isinstance(pair[1], Tensor) else pair[0] for pair in zip(found, result)]


def _operands(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """A node's arguments, operands among them as the dtype in which torch computes."""
    dtype = _meeting_dtype(node)

    def met(argument: fx.Node, dtype: torch.dtype | None = dtype) -> Any:
        value = env[argument]
        if dtype is None or not isinstance(value, ir.Value) or value.dtype == from_torch_dtype(dtype):
            return argument
        found = op.Cast(value, to=from_torch_dtype(dtype))
        found.dtype, found.shape = from_torch_dtype(dtype), value.shape
        return found

    args: Any = fx.node.map_arg(node.args, met)  # type: ignore[arg-type]
    return (met(node.args[0], torch.bool), *args[1:]) if node.target is aten.where.self else args  # type: ignore[arg-type]


def _meeting_dtype(node: fx.Node) -> torch.dtype | None:
    """In which dtype torch computes an operation; None where operands keep their own."""
    packet, result = getattr(node.target, "overloadpacket", None), node.meta.get("val")
    if packet is None or not isinstance(result, Tensor):
        return None
    if packet in _SUMS:
        return result.dtype
    if packet is aten._to_copy or torch.Tag.pointwise not in node.target.tags:  # type: ignore[union-attr]
        return None
    if packet.__name__.startswith("logical"):
        return torch.bool
    if result.dtype != torch.bool:
        return result.dtype
    met = functools.reduce(torch.result_type, [_probe(a) for a in node.args]) if len(node.args) > 1 else None
    met = met or node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    return torch.int32 if met == torch.bool and packet in _ORDERS else met


def _probe(argument: Any) -> Any:
    value = argument.meta["val"] if isinstance(argument, fx.Node) else argument
    return value if isinstance(value, Tensor | int | float) else 1.0 if isinstance(value, torch.SymFloat) else 1


def _plain(value: Any) -> Any:
    """An argument as torch's functions take it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return from_torch_dtype(value)
    return str(value) if isinstance(value, torch.device | torch.layout | torch.memory_format) else value
