"""Where NaN or infinity came from: a walk over the traced graph on the batch at which it appeared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..composites.composite import Composite
from ..engine.plan import make_plan
from ..engine.propagate import run_backward, run_forward
from ..errors import NonFiniteError
from ..graph.graph import ACTIVE, OpGraph, is_float
from ..tracing.tracer import trace

__all__ = ["bad_inputs", "first_non_finite"]


def bad_inputs(args: Sequence[Any], kwargs: Mapping[str, Any], labels: Any = None) -> str | None:
    """Which tensor of a batch holds NaN or infinity, and in which rows, if any does."""
    named = [(f"input {i}", x) for i, x in enumerate(args)] + [(repr(k), x) for k, x in kwargs.items()]
    for name, x in [*named, ("the labels", labels)]:
        if isinstance(x, Tensor) and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            if x.dim() == 0:
                return f"{name} is {x.item()}"
            rows = (~torch.isfinite(x)).flatten(1).any(1) if x.dim() > 1 else ~torch.isfinite(x)
            found = rows.nonzero().flatten().tolist()
            shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
            return f"{name} holds {_kind(x)} in row{'s' * (len(found) > 1)} {shown} of the batch"
    return None


def first_non_finite(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    composite: Composite,
    loss: Callable[[Any], Tensor],
) -> str:
    """The first operation of a step that makes NaN or infinity of finite numbers, as a phrase for a message.

    Args:
        args, kwargs: a batch, as the model is called with it. Random draws repeat if the generators' states are as before.
        loss: of the model's output.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the parameter {name} holds {_kind(parameter)}"
    graph = trace(model, tuple(args), dict(kwargs), fallback="retrace")
    values = graph.values_of_call(model, args, kwargs)
    with torch.no_grad():
        found = _forward(graph, values)
    return f"first in {found}, forward" if found else _backward(graph, values, composite, loss)


def _kind(x: Tensor) -> str:
    return "NaN" if bool(torch.isnan(x).any()) else "infinity"


def _tensors(value: Any) -> list[Tensor]:
    items = value if isinstance(value, list | tuple) else [value]
    return [x for x in items if is_float(x)]


def _forward(graph: OpGraph, values: Sequence[Any]) -> str | None:
    """The operation in which the NaN (or infinity) of an output began, None where all outputs are finite."""
    env: dict[fx.Node, Any] = dict(zip(graph.placeholder_nodes, values))
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            env[node] = getattr(graph.module, node.target)
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)

    def nan(node: fx.Node) -> bool:
        return any(bool(torch.isnan(x).any()) for x in _tensors(env[node]))

    def infinite(node: fx.Node) -> bool:
        info = graph.info.get(node)
        active = info is not None and info.kind == ACTIVE
        return active and any(bool(torch.isinf(x).any()) for x in _tensors(env[node]))

    outputs = [node for node in graph.user_output_nodes if isinstance(node, fx.Node)]
    for bad in (nan, infinite):
        start = next((node for node in outputs if bad(node)), None)
        if start is not None:
            node = _origin(_origin(start, nan) if bad is nan else start, infinite)
            return f"{graph.describe(node)}, which gives {'NaN' if nan(node) else 'infinity'}"
    return None


def _origin(node: fx.Node, bad: Callable[[fx.Node], bool]) -> fx.Node:
    """Go back from a node through its bad inputs, to one that has none."""
    while True:
        before = next((n for n in node.all_input_nodes if n.op == "call_function" and bad(n)), None)
        if before is None:
            return node
        node = before


def _backward(graph: OpGraph, values: Sequence[Any], composite: Composite, loss: Callable[[Any], Tensor]) -> str:
    """The same for the way back."""
    pairs = zip(graph.placeholder_nodes, graph.placeholders)
    plan = make_plan(graph, composite, {node for node, p in pairs if p.kind == "parameter"}, values=values)
    with torch.no_grad():
        outputs, calls, env = run_forward(plan, values)
    leaves = [r.detach().requires_grad_() if is_float(r) else r for r in graph.user_outputs(outputs)]
    value = loss(graph.rebuild(leaves))
    if not bool(torch.isfinite(value)):
        return f"the loss itself makes it, {value.item()}, of outputs that are finite"
    given = [(node, leaf) for node, leaf in zip(graph.user_output_nodes, leaves) if is_float(leaf)]
    signals = torch.autograd.grad(value, [leaf for _, leaf in given], allow_unused=True)
    if not all(g is None or bool(torch.isfinite(g).all()) for g in signals):
        return "the derivative of the loss, at outputs that are finite, makes it"
    at: dict[fx.Node, Tensor | None] = {node: g for (node, _), g in zip(given, signals) if g is not None}
    try:
        with torch.no_grad():
            run_backward(plan, calls, env, at, check=True)
    except NonFiniteError as error:
        return f"first on the way back: {error}"
    return "it does not appear again when the step is repeated operation by operation"
