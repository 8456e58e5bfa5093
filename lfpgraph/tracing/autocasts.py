"""Casts that autocast makes inside of operations which a trace keeps whole, such as the one from log-probabilities to a loss.

A trace has the casts of the operations that the model calls. A composite operation's own may differ: on a GPU, `nll_loss_nd` is
called with bfloat16 and runs `nll_loss`, which autocast runs in float32. The program runs without autocast, so it must be told.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ..kernels import LOW_PRECISION

__all__ = ["cast_inside"]

log = logging.getLogger("lfpgraph")
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_CAST = torch.ops.aten._to_copy.default


def cast_inside(graph: fx.Graph) -> None:
    """Cast what goes into operations of a graph that give a wider type under the autocast that is on than without it."""
    mode = next((v.fake_mode for n in graph.nodes if hasattr(v := n.meta.get("val"), "fake_mode")), None)
    if mode is None or not torch._C._is_any_autocast_enabled():
        return
    values: dict[fx.Node, Any] = {n: n.meta.get("val") for n in graph.nodes}
    wide: dict[fx.Node, torch.dtype] = {}
    changed: set[fx.Node] = set()
    with mode, torch.no_grad():
        for node in graph.nodes:
            if not isinstance(node.target, OpOverload) or not isinstance(values[node], Tensor):
                continue
            try:
                if changed.intersection(node.all_input_nodes):
                    values[node] = _run(node, values, cast=False)
                    changed.add(node)
                dtype = _run(node, values, cast=True).dtype if _may_cast(node, values) else values[node].dtype
            except RuntimeError as error:  # autocast has made no cast here for the type that comes now
                why = str(error).partition("\n")[0]
                log.info(
                    "casts inside of operations are left out from %s on, which fails with them (%s)", node.target, why
                )
                return  # the check of the trace tells if one was needed
            if dtype != values[node].dtype and values[node].dtype in LOW_PRECISION:
                wide[node] = dtype
                changed.add(node)
                values[node] = values[node].to(dtype)
    for node, dtype in wide.items():
        for source in node.all_input_nodes:
            if isinstance(values[source], Tensor) and values[source].dtype in LOW_PRECISION:
                with graph.inserting_before(node):
                    cast = graph.call_function(_CAST, (source,), {"dtype": dtype})
                with mode:
                    cast.meta = {**source.meta, "val": values[source].to(dtype)}
                node.replace_input_with(source, cast)
    for node in changed:
        node.meta["val"] = values[node]


def _may_cast(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    op: Any = node.target
    low = any(isinstance(v := values.get(n), Tensor) and v.dtype in LOW_PRECISION for n in node.all_input_nodes)
    return low and op.has_kernel_for_dispatch_key(_COMPOSITE)


def _run(node: fx.Node, values: dict[fx.Node, Any], cast: bool) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    kinds = {v.device.type for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
    if cast or not kinds:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    with torch.autocast(kinds.pop(), enabled=False):
        return node.target(*args, **kwargs)  # type: ignore[operator]
