"""Writes to memory that others share, as a value of its own and then a copy.

Autograd hangs a write to a view into the history of the tensor that the view is of: the operation's node lies within a
node that copies slices, where no hook reaches it. So what is written is computed first, by a step like any other, and
then copied; the copy hands on its signal as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from .operations import OWN_VIEW, OpInfo

if TYPE_CHECKING:
    from .record import Record

__all__ = ["is_apart", "is_followed", "write"]

_PARTS = (
    "AsStrided",
    "Diagonal",
    "Select",
    "Slice",
    "Split",
    "Unbind",
    "Unfold",
)  # autograd's nodes of views that leave something out
_COPY = torch.ops.aten.copy_.default


def is_followed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether autograd follows an argument."""
    return any(
        isinstance(x, Tensor) and x.requires_grad
        for value in (*args, *kwargs.values())
        for x in (value if isinstance(value, list | tuple) else (value,))
    )


def is_apart(info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation that writes to its first argument is to be recorded as a value and a copy."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or x.layout is not torch.strided or not is_followed(args, kwargs):
        return False
    return x._is_view() or info.parts is not None


def write(record: Record, op: OpOverload, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Run an operation that writes to its first argument.

    Other views of the same memory are known by what autograd makes of them: made of the tensor that all are views of.
    """
    x: Tensor = args[0]
    base = x._base
    if info.parts is not None:
        value = info.parts(*args, **kwargs)
    elif op is _COPY:
        value = args[1]
    else:
        value = x.clone()
        record.equate(value, record.number(x))
        value = record.step(op, info, (value, *args[1:]), kwargs)
    number = record.number(value)
    before = None if base is None else record.number(base)
    covered = base is not None and _covers(x, base)
    record.save_before_write(args)
    x.copy_(value)
    if base is not None and base.requires_grad:
        assert before is not None
        rest = [] if covered else [before]
        after = record.made_unseen(OWN_VIEW, [*rest, number], base)
        record.made_unseen(OWN_VIEW, [after], x)
    elif record.follows[number] == x.requires_grad:
        record.equate(x, number)
    else:
        record.made_unseen(OWN_VIEW, [number], x)
    return x


def _covers(x: Tensor, base: Tensor) -> bool:
    """Whether a view is its whole base in another shape or order, so that a write to it leaves nothing of what was there."""
    node = x.grad_fn if x.numel() == base.numel() else None
    while node is not None and node is not base.grad_fn and not hasattr(node, "variable"):
        if node.name().startswith(_PARTS):
            return False
        node = node.next_functions[0][0] if node.next_functions else None
    return x.numel() == base.numel()
