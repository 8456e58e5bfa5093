"""Parameters under other names, kept from run to run, whose way back makes feedback of their signals.

A run that is recorded takes each parameter through an alias of its own, and hangs a hook on it. One that goes as the run before
it takes the aliases that were made for that one: nothing is to be made anew, and no hook to be put.

Note [Not a view]: torch makes the autograd node of a view anew once the memory has been written to, as each step of an
optimizer does. What a custom Function hands out is no view; it lies in the same memory all the same, and autograd counts writes
to it as it counts those to the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..parameters import Scale

__all__ = ["Met", "hold", "scaled_by"]

_grad = torch.is_grad_enabled


class Met(NamedTuple):
    """A parameter that a step has read, to be met there again.

    Attributes:
        place: among the step's arguments. number: of its value.
        same: in the same memory and of the same shape as it was.
        given: what the operation is given in its place: an alias, or itself.
    """

    place: int
    number: int
    parameter: Tensor
    shape: torch.Size
    same: Tensor
    given: Tensor


class _Held(torch.autograd.Function):
    """Parameters in their own memory (Note [Not a view]); what they hand back is feedback."""

    @staticmethod
    def forward(ctx: Any, scales: list[Scale], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.scales = scales
        ctx.set_materialize_grads(False)
        return tuple(p.detach() for p in parameters)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor | None) -> Any:
        if _grad():  # the true derivative is asked for
            return (None, *signals)
        return (None, *[None if s is None else scale.feedback(s) for scale, s in zip(ctx.scales, signals)])


_NODE: Any = _Held._backward_cls  # type: ignore[attr-defined]


def hold(found: Sequence[tuple[int, int, Tensor, Scale | None]]) -> list[Met]:
    """Parameters as one step has met them; None in place of a scale: its signal is its feedback, and is noted elsewhere."""
    scaled = [(parameter, scale) for _, _, parameter, scale in found if scale is not None]
    aliases = iter(_Held.apply([scale for _, scale in scaled], *(p for p, _ in scaled)) if scaled else ())
    met = []
    for place, number, x, scale in found:
        alias = x if scale is None else next(aliases)
        met.append(Met(place, number, x, x.shape, x.detach() if scale is None else alias, alias))
    return met


def scaled_by(edge: tuple[Any, int], scale: Scale) -> bool:
    """Whether the alias with this edge makes feedback by itself: from now on by this scale, nearly always what it did."""
    node, slot = edge
    if type(node) is not _NODE:
        return False
    node.scales[slot] = scale
    return True
