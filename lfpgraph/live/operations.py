"""What the recorder has to know of an operation: its arguments' kinds, its functional form, how it is to be run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload

from ..graph.regions import may_join
from ..graph.selections import LOOKUPS, MASKS
from ..registry import GENERAL, NOTHING, SELECTION, VIEW, find_rule, rule
from ..rules.views import vjp
from ..tracing.rewrite import OWN_PARTS, parts_of, takes_tensors
from . import interception

__all__ = [
    "OWN_BACKWARD",
    "OWN_VIEW",
    "SIZE",
    "STATIC",
    "TENSOR",
    "TENSORS",
    "OpInfo",
    "autocast_of",
    "covers",
    "has_no_derivative",
    "info_of",
    "without_out",
]

aten = torch.ops.aten
TENSOR, TENSORS, STATIC, SIZE = range(4)
# a mask made of these selects a value
_POINTS_BACK = {aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.multinomial.default}

_library = torch.library.Library("lfpgraph_live", "DEF")
_library.define("own_backward(Tensor[] inputs, Tensor like) -> Tensor")
_library.define("own_view(Tensor[] inputs, Tensor like) -> Tensor")


def _like(inputs: list[Tensor], like: Tensor) -> Tensor:
    return torch.zeros_like(like)


for _name in ("own_backward", "own_view"):
    _library.impl(_name, _like, "CompositeExplicitAutograd")
OWN_BACKWARD = torch.ops.lfpgraph_live.own_backward.default  # a custom autograd.Function, or what else has a backward
OWN_VIEW = torch.ops.lfpgraph_live.own_view.default  # a tensor that was written to through a view of it
rule(OWN_BACKWARD, family=GENERAL, source="the function's own backward", override=False)(vjp)
rule(OWN_VIEW, family=VIEW, source="entries written in place", override=False)(vjp)


@dataclass(frozen=True)
class OpInfo:
    """What is known of an operation.

    Attributes:
        kinds, kwarg_kinds: for each argument, by position and by name: TENSOR, TENSORS, STATIC (what the plan may depend
            on) or SIZE (a size, a number or a generator, which differs from call to call).
        node: the operation that stands for it in a graph: its functional form where it writes in place.
        writes: whether it writes to an argument, the first one in most cases; written: the places of those it writes to.
        rewrites: whether what it writes is a value of the same size, and not another view.
        open: how to run it so that its parts are recorded, where it is a composite operation without a rule.
        parts: the same of its functional form, for one that torch runs whole and tracing takes apart.
        forgets: whether its result carries nothing of its arguments.
        shaped: whether a plan may depend on which of its tensors have one shape: it may be part of a region. What else is
            equal is so by chance (a sequence as long as a head is wide, as many rows for an expert as there are).
        shaped_mask: whether it may depend on that where autograd does not follow the results: masks select by their shape.
        looks_up: whether it takes values from places that may have been chosen by others (`graph.selections`).
    """

    kinds: tuple[int, ...]
    kwarg_kinds: dict[str, int]
    node: OpOverload
    writes: bool
    written: tuple[int, ...]
    rewrites: bool
    open: Callable[..., Any] | None
    parts: Callable[..., Any] | None
    forgets: bool
    shaped: bool
    shaped_mask: bool
    looks_up: bool


_KNOWN: dict[OpOverload, OpInfo] = {}


def info_of(op: OpOverload) -> OpInfo:
    """What is known of an operation; worked out once."""
    found = _KNOWN.get(op)
    if found is None:
        found = _KNOWN[op] = _describe(op)
    return found


def _describe(op: OpOverload) -> OpInfo:
    declared = str(op._schema).partition("(")[2].rpartition(") -> ")[0]
    kinds = dict(zip((a.name for a in op._schema.arguments), map(_kind, _split(declared))))
    positional = tuple(kinds[a.name] for a in op._schema.arguments)
    writes = op._schema.is_mutable
    node = _functional(op) if writes else op
    entry = find_rule(node)
    forgets = entry is not None and entry.family is NOTHING and op not in _POINTS_BACK
    family = entry.family if entry is not None else None
    found = torch.Tag.dynamic_output_shape in op.tags or family is SELECTION  # sizes are those of what was selected
    parts = parts_of(node) if takes_tensors(op) and not (writes and node is op) else None
    return OpInfo(
        kinds=positional,
        kwarg_kinds=kinds,
        node=node,
        writes=writes,
        written=tuple(i for i, a in enumerate(op._schema.arguments) if a.is_write and not a.is_out),
        rewrites=writes and node is not op and torch.Tag.inplace_view not in op.tags,
        open=_opener(op)
        if entry is None or op is aten.expand_as.default
        else None,  # which reads no value of its second
        parts=None if parts is None else _seen_by(parts),
        forgets=forgets,
        shaped=may_join(node, family),
        shaped_mask=node in MASKS or not found,
        looks_up=node in LOOKUPS,
    )


def _split(declared: str) -> list[str]:
    """The arguments of a schema, one by one."""
    return [part for part in declared.split(", ") if part and part != "*"]


def _kind(argument: str) -> int:
    type_ = argument.rsplit(" ", 1)[0]
    if type_.startswith("Tensor"):
        return TENSORS if "[" in type_ else TENSOR
    return SIZE if type_.startswith(("SymInt", "float", "Generator")) or type_.rstrip("?") == "Scalar" else STATIC


def _functional(op: OpOverload) -> OpOverload:
    """The operation that computes what an in-place one writes."""
    name = op._schema.name.split("::")[1]
    if op is aten.copy_.default:
        return OWN_VIEW
    packet = getattr(aten, name.removesuffix("_"), None) if op.namespace == "aten" and name.endswith("_") else None
    if packet is None:
        return op
    return _overload(packet, [str(a.type) for a in op._schema.arguments], op._overloadname) or op


def without_out(op: OpOverload) -> OpOverload | None:
    """The operation that returns what another one writes to the tensor `out`."""
    wanted = [str(a.type) for a in op._schema.arguments if not a.is_out]
    return _overload(op._overloadpacket, wanted)


def _overload(packet: Any, wanted: list[str], likely: str = "default") -> OpOverload | None:
    """The overload that takes arguments of these types: `pow.Scalar` takes others than `pow_.Scalar`."""
    names = sorted(packet.overloads(), key=lambda name: name != likely)
    overloads = (getattr(packet, name) for name in names)
    return next((o for o in overloads if [str(a.type) for a in o._schema.arguments] == wanted), None)


def _opener(op: OpOverload) -> Callable[..., Any] | None:
    if op in (aten.expand_as.default, aten.view_as.default):
        return functools.partial(_as_another, op)
    if op in OWN_PARTS:
        return _seen_by(OWN_PARTS[op])
    if op is aten.kron.default:
        return _kron
    # torch's own, not one that was registered in Python beside it: `seen` finds only the first
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return lambda *args, **kwargs: interception.seen(op, args, kwargs)
    return None


def _as_another(op: OpOverload, x: Tensor, other: Tensor) -> Any:
    """As parts; but a parameter in its own shape is a way to autograd's node of it, for hooks there (FSDP), and no alias."""
    if x is other and x.is_leaf:
        return op._op(x, other)
    return interception.seen(op, (x, other), {})


def _kron(x: Tensor, y: Tensor) -> Any:
    """As parts, of copies: torch's own keeps the memory of both for autograd, and does not notice when it is written to."""
    with interception.resumed():
        x, y = x.clone(), y.clone()
    return interception.seen(aten.kron.default, (x, y), {})


def _seen_by(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with interception.resumed():
            return function(*args, **kwargs)

    return run


_HAS_DERIVATIVE: dict[OpOverload, bool] = {}


def has_no_derivative(info: OpInfo, results: list[Any]) -> bool:
    """Whether autograd lets a result follow, only to refuse in the backward pass: as for `heaviside`, and the user's own."""
    found = _HAS_DERIVATIVE.get(info.node)
    if found is None:
        nodes = [x.grad_fn for x in results if isinstance(x, Tensor) and x.grad_fn is not None]
        if not nodes:
            return False
        own = OPDEFS.get(info.node.name())
        refused = (
            own._backward_fn is None if own is not None else any(n.name().endswith("NotImplemented") for n in nodes)
        )
        found = _HAS_DERIVATIVE[info.node] = not refused
    return not found


def autocast_of(args: tuple[Any, ...]) -> tuple[str, torch.dtype] | None:
    """The autocast that is on for the devices of an operation's tensors."""
    for value in args:
        for x in value if isinstance(value, list | tuple) else (value,):
            if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
                return x.device.type, torch.get_autocast_dtype(x.device.type)
    return None


def covers(x: Tensor, base: Tensor) -> bool:
    """Whether a view is its whole base in another shape or order, so that a write to it leaves nothing of what was there."""
    if x.numel() != base.numel() or x.storage_offset() != base.storage_offset():
        return False
    return _dense(x) and _dense(base) or _extents(x) == _extents(base)


def _extents(x: Tensor) -> list[tuple[int, int]]:
    return sorted((stride, size) for stride, size in zip(x.stride(), x.size()) if size > 1)


def _dense(x: Tensor) -> bool:
    """Whether a tensor without two entries at one place has its entries side by side."""
    return sum(stride * (size - 1) for stride, size in _extents(x)) == x.numel() - 1
