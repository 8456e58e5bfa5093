"""A pass that makes every operation of a graph functional, as cutting it in two needs."""

from __future__ import annotations

import torch
from torch import fx

from .nodes import is_view

__all__ = ["make_functional"]

aten = torch.ops.aten


def make_functional(graph: fx.Graph) -> bool:
    """Replace in-place operations on values that nothing else reads; returns whether any other mutation is left."""
    for node in graph.nodes:
        op = node.target
        if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
            continue
        form, source = _functional_form(op), node.args[0]
        if form is None or not isinstance(source, fx.Node) or source.op != "call_function" or len(source.users) != 1:
            return False
        if is_view(source):
            return False
        if form is aten.bernoulli.p and len(node.args) == 1 and not node.kwargs:
            node.args = (source, 0.5)
        node.target = form
    return True


def _functional_form(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    if op is aten.bernoulli_.float:
        return aten.bernoulli.p
    name = op._schema.name.removeprefix("aten::")
    overloads = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    form = getattr(overloads, op._overloadname, None)
    return form if isinstance(form, torch._ops.OpOverload) and not form._schema.is_mutable else None
