"""What is changed in an exported graph: no_grad regions kept, composite ops taken apart, the tracer's debris removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..registry import find_rule

__all__ = ["decompositions", "keep_no_grad", "tidy"]

_aten = torch.ops.aten
_RECURRENT = {
    _aten.gru.data,
    _aten.gru.input,
    _aten.lstm.data,
    _aten.lstm.input,
    _aten.rnn_relu.data,
    _aten.rnn_relu.input,
    _aten.rnn_tanh.data,
    _aten.rnn_tanh.input,
}


def keep_no_grad(module: fx.GraphModule) -> None:
    """Detach what leaves a no_grad region, since inlining the region would forget that no reward passes it."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled":
            continue
        if node.args[0]:
            continue
        for user in list(node.users):
            value = user.meta.get("val")
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            with module.graph.inserting_after(user):
                detached = module.graph.call_function(torch.ops.aten.detach.default, (user,))
            detached.meta = dict(user.meta)
            user.replace_all_uses_with(detached, delete_user_cb=lambda other, skip=detached: other is not skip)
    module.recompile()


def decompositions(module: fx.GraphModule) -> dict[Any, Callable[..., Any]]:
    """How to take apart the operations of a graph that have no rule of their own (composite ops).

    Recurrent layers become their cells and cells their gates; operations that torch defines in terms of others, or has
    a core decomposition for, become those.
    """
    from torch._decomp import core_aten_decompositions, decomposition_table
    from torch._export.utils import _get_decomp_for_cia

    core = core_aten_decompositions()
    table: dict[Any, Callable[..., Any]] = {}
    for graph in (m for m in module.modules() if isinstance(m, fx.GraphModule)):
        for node in graph.graph.nodes:
            op = node.target
            if not isinstance(op, OpOverload) or find_rule(op) is not None or op in table:
                continue
            if op in _RECURRENT:
                table[op] = decomposition_table[op]
            elif op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
                table[op] = _get_decomp_for_cia(op)
            elif op in core:
                table[op] = core[op]
    return table


def tidy(module: fx.GraphModule) -> None:
    """Remove the tracer's assertions, which compute nothing but look like users of a value; make views tolerant.

    A view is right for the strides that the tracer assumed; a kernel may return others, and reshape takes both.
    """
    for node in reversed(list(module.graph.nodes)):
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
        if node.target is _aten.copy.default:
            _copy_as_expand(module, node)
        if (
            node.op == "call_function"
            and getattr(node.target, "__name__", "").startswith("_assert_")
            and not node.users
        ):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _copy_as_expand(module: fx.GraphModule, node: fx.Node) -> None:
    """A functional copy is its source, in the shape and dtype of its first argument; torch has no derivative of it."""
    target, source = node.args[:2]
    with module.graph.inserting_before(node):
        if source.meta["val"].dtype != node.meta["val"].dtype:  # type: ignore[union-attr]
            cast = module.graph.call_function(_aten._to_copy.default, (source,), {"dtype": node.meta["val"].dtype})
            cast.meta = {**node.meta, "val": source.meta["val"].to(node.meta["val"].dtype)}  # type: ignore[union-attr]
            source = cast
    node.target, node.args, node.kwargs = _aten.expand_as.default, (source, target), {}
