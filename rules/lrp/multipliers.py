"""What the rules that compare two runs share (`rescale`): vjps between the runs, and quotients of differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import Call, Signals

__all__ = ["averaged", "is_float", "moving", "quotient", "vjp_at"]

# Places on the way from 0 to 1 and their weights (Gauss-Legendre): exact for polynomials up to degree 1, 3, 9.
_WAYS: dict[int, list[tuple[float, float]]] = {
    1: [(0.5, 1.0)],
    2: [(0.21132486540518713, 0.5), (0.7886751345948129, 0.5)],
    5: [
        (0.046910077030668004, 0.11846344252809454),
        (0.23076534494715845, 0.23931433524968324),
        (0.5, 0.28444444444444444),
        (0.7692346550528415, 0.23931433524968324),
        (0.953089922969332, 0.11846344252809454),
    ],
}


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def moving(call: Call) -> list[int]:
    """The float arguments that the reference point changes."""
    pairs = enumerate(zip(call.inputs, call.reference))
    return [i for i, (x, x0) in pairs if call.active[i] and x is not x0 and is_float(x)]


def vjp_at(call: Call, s: Any, inputs: Sequence[Any]) -> Signals:
    """The vjp at other values of the arguments, for those that somebody waits for."""
    wanted = [i for i, x in enumerate(inputs) if call.wanted[i] and is_float(x)]
    leaves = list(inputs)
    for i in wanted:
        leaves[i] = leaves[i].detach().requires_grad_()
    with torch.enable_grad():
        z = call.run(leaves)
    outputs, signals = (list(v) if isinstance(v, list | tuple) else [v] for v in (z, s))
    pairs = [(o, g) for o, g in zip(outputs, signals) if g is not None and is_float(o) and o.requires_grad]
    found: Signals = [None] * len(leaves)
    if pairs and wanted:
        zs, gs = zip(*pairs)
        for i, g in zip(wanted, torch.autograd.grad(zs, [leaves[i] for i in wanted], gs, allow_unused=True)):
            found[i] = g
    return found


def between(call: Call, portion: float) -> list[Any]:
    """The arguments at a place on the way from the reference point, 1 for this run; integers as they are in this run."""
    inputs = list(call.inputs)
    for i in moving(call):
        x0 = call.reference[i]
        inputs[i] = torch.where(
            inputs[i] == x0, x0, x0 + portion * (inputs[i] - x0)
        )  # infinite ones have no difference
    return inputs


def averaged(call: Call, s: Any, places: int) -> Signals:
    """The vjp averaged over so many places on the way."""
    total: Signals = [None] * len(call.inputs)
    for portion, weight in _WAYS[places]:
        for i, g in enumerate(vjp_at(call, s, between(call, portion))):
            if g is not None:
                total[i] = g * weight if total[i] is None else total[i] + g * weight  # type: ignore[operator]
    return total


def quotient(part: Tensor, x: Tensor, x0: Tensor, slope: Tensor) -> Tensor:
    """`part / (x - x0)`, and the slope where x and x0 are too close for that."""
    way = x - x0
    near = (x == x0) | (way.abs() <= torch.finfo(x.dtype).eps ** 0.5 * (x.abs() + x0.abs()))
    return torch.where(near, slope, part / torch.where(near, torch.ones_like(way), way))
