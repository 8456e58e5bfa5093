"""Changes to an exported graph: no_grad regions are kept, composite ops taken apart, the tracer's assertions removed."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._export.utils import _is_preservable_cia_op
from torch._ops import OpOverload
from torch.export import exported_program
from torch.nn import functional as F

from ..registry import find_rule, registered_rules
from .cells import cells_kept_whole
from .origins import remember_places
from .recurrent import FUSED_CELLS, RECURRENT, decomposition_of
from .written.held import read_beside
from .written.inverse_views import cancel_inverse_views
from .written.writes import MAY_RETURN_SELF, detach_what_is_read, is_written, put_after

__all__ = [
    "OWN_PARTS",
    "decompositions",
    "few_kept_whole",
    "free_detached",
    "keep_no_grad",
    "no_grad_regions",
    "parts_of",
    "region_body",
    "takes_tensors",
    "tidy",
    "without_idle_dropout",
]

_aten = torch.ops.aten

_KINDS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_DROPOUT = {getattr(_aten, f"{kind}{in_place}").default for kind in _KINDS for in_place in ("", "_")}


def _cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """As torch has it, but without a write that autograd is not to see."""
    x, y = torch.broadcast_tensors(x, y)
    return (F.normalize(x, dim=dim, eps=eps) * F.normalize(y, dim=dim, eps=eps)).sum(dim)


def _copied(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """A functional copy, of which torch has no derivative."""
    return source.to(x.dtype).expand_as(x)


# What composite ops are made of, where torch's own way leaves something out.
OWN_PARTS: dict[OpOverload, Callable[..., Any]] = {op: decomposition_of(op) for op in RECURRENT} | FUSED_CELLS
OWN_PARTS[_aten.cosine_similarity.default] = _cosine_similarity
OWN_PARTS[_aten.copy.default] = _copied
OWN_PARTS[_aten.cudnn_grid_sampler.default] = lambda x, grid: _aten.grid_sampler_2d.default(x, grid, 0, 0, True)


def keep_no_grad(module: fx.GraphModule) -> None:
    """Detach what leaves a no_grad region, since inlining the region would forget that no reward passes it.

    What only passes through a region is not detached: `x.to(x.dtype)` returns x itself, but the tracer takes it for
    a new value and lets everything after the region read that.
    """
    for node in list(module.graph.nodes):
        body = region_body(module, node)
        if body is None:
            continue
        remember_places(body)
        if node.args[0]:
            continue
        for user in list(node.users):
            value = user.meta.get("val")
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            outside = _passed_through(module, node, user)
            if outside is not None:
                user.replace_all_uses_with(outside)
                continue
            put_after(module.graph, user, _aten.detach.default)
        detach_what_is_read(body)


def region_body(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    """What runs in a region with or without gradients, if the node is one."""
    if node.op != "call_function" or getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled":
        return None
    body = node.args[1]
    inner = getattr(module, str(body.target), None) if isinstance(body, fx.Node) else None
    return inner if isinstance(inner, fx.GraphModule) else None


def no_grad_regions(module: fx.GraphModule) -> dict[fx.Node, fx.GraphModule]:
    """The nodes of regions without gradients, and what runs in each."""
    found = {node: region_body(module, node) for node in module.graph.nodes}
    return {node: body for node, body in found.items() if body is not None and not node.args[0]}


def _passed_through(module: fx.GraphModule, region: fx.Node, item: fx.Node) -> fx.Node | None:
    """The region's argument that an item of its output is, untouched; None if the region computed it."""
    inner = region_body(module, region)
    if inner is None or item.target is not operator.getitem:
        return None
    node: Any = inner.graph.output_node().args[0][item.args[1]]  # type: ignore[index]
    while isinstance(node, fx.Node) and node.target in MAY_RETURN_SELF:
        source = node.args[0]
        if not isinstance(source, fx.Node) or _layout(source) != _layout(node):
            return None
        node = source
    arguments = [n for n in inner.graph.nodes if n.op == "placeholder"]
    place = arguments.index(node) if node in arguments else None
    outside = None if place is None else region.args[2 + place]
    return outside if isinstance(outside, fx.Node) else None


def _layout(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return (value.dtype, value.device, tuple(map(str, value.shape))) if isinstance(value, Tensor) else None


def free_detached(module: fx.GraphModule) -> None:
    """Give a detached tensor that is written to memory of its own, where nothing else reads the tensor it came from.

    Functionalisation takes detach for a view, and would detach what was written as well.
    """
    for node in list(module.graph.nodes):
        if node.target is _aten.detach.default and is_written(node) and not read_beside(module.graph, node):
            put_after(module.graph, node, _aten.clone.default)


def without_idle_dropout(module: fx.GraphModule) -> None:
    """Let dropout that drops nothing be its input, as it is when the model runs; torch would make it a copy."""
    for inner in (m for m in module.modules() if isinstance(m, fx.GraphModule)):
        idle = [n for n in inner.graph.nodes if n.target in _DROPOUT and (n.args[1] == 0 or not n.args[2])]
        for node in idle:
            node.replace_all_uses_with(node.args[0])
            inner.graph.erase_node(node)
        if idle:
            inner.recompile()


def decompositions(module: fx.GraphModule, done: Container[Any] | None = None) -> dict[Any, Callable[..., Any]]:
    """How to take apart the operations of a graph that have no rule of their own (composite ops).

    Args:
        done: what has been taken apart before; then only operations on tensors are looked for, since the others make constants.

    Returns:
        Nothing if there is nothing to take apart; otherwise parts of all of torch's operations on tensors that are not
        composite as well, since what an operation is made of may have to be taken apart itself.
    """
    graphs = (m.graph for m in module.modules() if isinstance(m, fx.GraphModule))
    ops = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
    ops -= cells_kept_whole().keys()
    if done is not None:
        ops = {op for op in ops if op not in done and takes_tensors(op)}
    found = {op: parts for op in ops if (parts := parts_of(op)) is not None}
    return found and found | {op: parts for op in _torch_operations() if (parts := parts_of(op)) is not None}


@functools.cache
def _torch_operations() -> list[OpOverload]:
    """Torch's operations that take tensors and are not composite: of these, torch knows itself what they are made of."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    parts = (name.removeprefix("aten::").partition(".") for name in names)
    ops = (getattr(getattr(_aten, name, None), overload or "default", None) for name, _, overload in parts)
    found = (op for op in ops if isinstance(op, OpOverload) and takes_tensors(op))
    return [op for op in found if not op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)]


@contextlib.contextmanager
def few_kept_whole(module: fx.GraphModule, table: Mapping[Any, Any]) -> Iterator[None]:
    """Have `run_decompositions` keep whole only those composite operations that have a rule, or are in the graph.

    By itself it looks at, and prepares, each of the two thousand that torch has: longer than a small model's trace takes.

    Args:
        table: what it is going to be given.
    """
    graphs = (m.graph for m in module.modules() if isinstance(m, fx.GraphModule))
    here = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
    collect: Any = getattr(exported_program, "_collect_all_valid_cia_ops", None)
    if collect is None:  # another torch: it takes longer
        yield
        return
    own = {rule.op for rule in registered_rules() if isinstance(rule.op, OpOverload)}
    exported_program._collect_all_valid_cia_ops = lambda: {  # type: ignore[attr-defined]
        op for op in {*here, *own, *table} if _is_preservable_cia_op(op)
    }
    try:
        yield
    finally:
        exported_program._collect_all_valid_cia_ops = collect  # type: ignore[attr-defined]


def takes_tensors(op: OpOverload) -> bool:
    """Whether an operation has a tensor among its arguments."""
    return any("Tensor" in str(argument.type) for argument in op._schema.arguments)


def parts_of(op: OpOverload) -> Callable[..., Any] | None:
    """What computes the same as an operation without a rule by other operations; None where it has a rule, or no such parts.

    Recurrent layers become their cells and cells their gates; operations that torch defines in terms of others, or has
    a core decomposition for, become those.
    """
    from torch._export.utils import _get_decomp_for_cia

    if find_rule(op) is not None:
        return None
    if op in OWN_PARTS:
        return OWN_PARTS[op]
    if op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return _get_decomp_for_cia(op)  # type: ignore[no-any-return]
    if op.namespace == "prims":  # what core decompositions are written in, with ATen operations behind it
        return _copy if op.name() == "prims::copy_strided" else getattr(op, "impl_aten", None)
    return _core()[op] if op in _core() else None


def _copy(x: Tensor, stride: Any) -> Tensor:
    return x.clone()  # torch's own writes in place, to another layout


@functools.cache
def _core() -> dict[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions

    return core_aten_decompositions()


def tidy(module: fx.GraphModule) -> None:
    """Remove the tracer's assertions, which compute nothing but look like users of a value; turn views into reshapes.

    A view is right for the strides that the tracer assumed; a kernel may return others, and reshape takes both.
    """
    for node in reversed(list(module.graph.nodes)):
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
        if node.target is _aten._embedding_bag_forward_only.default:
            node.target = _aten._embedding_bag.default  # what the tracer takes where nothing requires a gradient
        if node.target is _aten.broadcast_tensors.default:
            _without_broadcast(node)
        if node.target is _aten.copy.default:
            _copy_as_expand(module, node)
        if (
            node.op == "call_function"
            and getattr(node.target, "__name__", "").startswith("_assert_")
            and not node.users
        ):
            module.graph.erase_node(node)
    cancel_inverse_views(module.graph)
    module.graph.eliminate_dead_code()
    module.recompile()


def _without_broadcast(node: fx.Node) -> None:
    """Read tensors themselves where `broadcast_tensors` hands them back as they are."""
    for item in list(node.users):
        source = node.args[0][item.args[1]]  # type: ignore[index]
        if item.target is operator.getitem and _layout(source) == _layout(item):  # type: ignore[arg-type]
            item.replace_all_uses_with(source)  # type: ignore[arg-type]


def _copy_as_expand(module: fx.GraphModule, node: fx.Node) -> None:
    """Write a functional copy, of which torch has no derivative, as its source in its first argument's dtype and shape."""
    target, source = node.args[:2]
    with module.graph.inserting_before(node):
        if source.meta["val"].dtype != node.meta["val"].dtype:  # type: ignore[union-attr]
            cast = module.graph.call_function(_aten._to_copy.default, (source,), {"dtype": node.meta["val"].dtype})
            cast.meta = {**node.meta, "val": source.meta["val"].to(node.meta["val"].dtype)}  # type: ignore[union-attr]
            source = cast
    if _layout(source) == _layout(node):  # type: ignore[arg-type]
        node.replace_all_uses_with(source)  # type: ignore[arg-type]
        return
    node.target, node.args, node.kwargs = _aten.expand_as.default, (source, target), {}
