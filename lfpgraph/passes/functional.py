"""Passes over a graph as it was traced: what means nothing goes, and every operation is made functional, to be cut in two."""

from __future__ import annotations

import torch
from torch import fx

from ..graph.graph import shape_of
from .nodes import is_view, stays

__all__ = ["clean", "make_functional"]

aten = torch.ops.aten
_IDENTITIES = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}


def clean(traced: fx.GraphModule) -> None:
    """Remove detach and alias, which mean nothing without autograd, and all that is not used; turn views into reshapes."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # the strides of real kernels may differ from the traced ones
        _shorten(node)
    traced.graph.eliminate_dead_code(is_impure_node=stays)


def _shorten(node: fx.Node) -> None:
    """Skip what a transpose of a transpose, a reshape of a reshape, or a reshape to the same shape need not do."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.op != "call_function":
        return
    if node.target is aten.reshape.default and shape_of(node) == shape_of(source):
        node.replace_all_uses_with(source)
        return
    if node.target is not source.target:
        return
    if node.target is aten.t.default:
        node.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
    elif node.target is aten.reshape.default:
        node.args = (source.args[0], *node.args[1:])


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
