"""Steps under `lfp`: a function that is constant in pieces hands on the slope of secants of several widths.

A step has no derivative of use, and `f(x) / x` says nothing of where its threshold is. A secant, `(f(x + h) - f(x - h)) / 2h`,
sees every threshold within h, and needs nothing but f. The widths are multiples of the spread of x, so the rule is the same
whatever the units of x are, up to a spread of 1: what has grown further is looked at more narrowly, as a surrogate of a fixed
width does. Where x is divided first, as sums of whole numbers are before they are rounded, that is the spread of what it is then.
The narrow widths weigh what is about to change, the wide ones let what is far from a threshold learn all the same.
Each weighs in inverse proportion to its size, so the slope falls with the square of the distance from the threshold, about as
the derivative of an arctangent does.

Where spikes reset their own membrane, that way is closed to reward: the membrane learns from what its spikes did. Parameters
that a step is made of (binary or rounded weights) get their signal in the same way.

Source: this project; finite differences of a step, as randomized smoothing has them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CompositeError
from ..graph.graph import ACTIVE, CASTS, WEIGHT, OpGraph
from ..graph.neurons import STEPS, find_neurons
from ..graph.structure import Structure
from ..kernels import LOW_PRECISION
from ..registry import COMPARISON, Call, Handler, Signals
from ..rules.activations import activation
from ..rules.views import vjp
from ..secants.operations import comparison_signal, spread_of
from .centred import activations_of, in_place_of, value_at

__all__ = ["STEP_SPREAD", "STEP_WIDTHS", "add_steps"]

STEP_WIDTHS = (0.55, 1.7, 5.5, 17.0)  # chosen on parts of training sets; see docs/experiments.md
STEP_SPREAD = 1.0

aten = torch.ops.aten
_HAVE_DERIVATIVES = {  # torch's own, which pass what lies in range
    aten.fake_quantize_per_channel_affine.default,
    aten.fake_quantize_per_tensor_affine.default,
}

_FACTORS, _TERMS = (aten.div.Tensor, aten.mul.Tensor), (aten.add.Tensor, aten.sub.Tensor)
_SIDES: dict[Any, int] = {aten.gt.Scalar: 1, aten.ge.Scalar: 1, aten.lt.Scalar: -1, aten.le.Scalar: -1}


def add_steps(graph: OpGraph, found: Structure, widths: tuple[float, ...], most: float = STEP_SPREAD) -> None:
    """Give every step of a graph the rule above, and close the way of reward over resets.

    Args:
        widths: of the secants, in units of the spread of x.
        most: a larger spread counts as this one.

    Raises:
        CompositeError: there is no width, or a number is not above zero.
    """
    if not widths or not all(width > 0 for width in widths):
        raise CompositeError(f"step_widths={widths!r} must hold at least one number, all of them above zero")
    if not most > 0:
        raise CompositeError(f"step_spread={most!r} must be above zero")
    for entry, nodes in activations_of(graph, found):
        if _is_step(graph, entry, nodes):
            known, scaling = _threshold(entry, nodes), _scaling(graph, entry, nodes)
            rule = partial(_stepped, widths, most, scaling)
            found.rules[nodes[-1]] = rule if known is None else partial(_compared, widths, most, *known)
    for node in graph.operations():
        if node.target in STEPS - _HAVE_DERIVATIVES and graph.info[node].kind == WEIGHT:
            found.rules[node] = partial(_stepped, widths, most, 0)
    neurons = find_neurons(graph, found.regions)
    found.blocked |= neurons.resets
    for entry, nodes in activations_of(graph, found):
        if entry in neurons.membranes and nodes[-1] not in found.rules:
            found.rules[nodes[-1]] = lambda usual: vjp if usual is activation else usual


def _is_step(graph: OpGraph, entry: fx.Node | None, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether every way through a function leads through a comparison or a rounding, so that it is constant in pieces."""
    if entry is None:
        return nodes[0].target in STEPS
    direct = {entry}  # what depends on the input other than through a step
    for node in nodes:
        steps = node.target in STEPS or graph.info[node].family is COMPARISON
        if not steps and not direct.isdisjoint(node.all_input_nodes):
            direct.add(node)
    return nodes[-1] not in direct


def _scaling(graph: OpGraph, entry: fx.Node | None, nodes: tuple[fx.Node, ...]) -> int:
    """How many operations at the start of a function multiply x by what is no activation, or move it; 0 if none multiplies."""
    x, chain = entry, list[fx.Node]()
    for node in nodes:
        if x is None or not _is_linear(graph, node, x) or {n for n in x.users if n in nodes} != {node}:
            break
        x = node
        chain.append(node)
    return len(chain) if any(node.target in _FACTORS for node in chain) else 0


def _is_linear(graph: OpGraph, node: fx.Node, x: fx.Node) -> bool:
    """Whether an operation is one of x and of what is no activation that is linear in x."""
    passive = all(graph.info[n].kind != ACTIVE for n in node.all_input_nodes if n is not x)
    return node.args[0] is x and (
        node.target in CASTS or (node.target in (*_FACTORS, *_TERMS) and passive and node.args[1] is not x)
    )


def _threshold(entry: fx.Node | None, nodes: tuple[fx.Node, ...]) -> tuple[float, int] | None:
    """The number that a function compares its input with, if it does no more; 1 or -1 as larger or smaller inputs give one."""
    compare, *others = nodes
    side = _SIDES.get(compare.target)
    casts = all(node.target in CASTS and node.args[0] is before for node, before in zip(others, nodes))
    x, number = compare.args if len(compare.args) == 2 else (None, None)
    plain = isinstance(number, int | float) and (entry is None or x is entry)
    return (float(number), side) if side is not None and casts and plain else None  # type: ignore[arg-type]


def _compared(widths: tuple[float, ...], most: float, number: float, side: int, usual: Handler) -> Handler:
    """The same rule of a function that only compares with a number: the secants of it are known."""
    return in_place_of(usual, partial(_known_secants, widths, most, number, side))


def _stepped(widths: tuple[float, ...], most: float, scaling: int, usual: Handler) -> Handler:
    """The rule of a step in place of the usual one: of an activation, or of an operation on parameters."""
    if usual is vjp:
        return partial(_of_parameters, widths, most)
    return in_place_of(usual, partial(_secants, widths, most, scaling))


def _of_parameters(widths: tuple[float, ...], most: float, call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    return [_secants(widths, most, 0, call, s, i) if call.wanted[i] else None for i in range(len(call.inputs))]


def _secants(widths: tuple[float, ...], most: float, scaling: int, call: Call, s: Tensor, place: int) -> Tensor:
    """Signal of x for z = f(x): by the slopes of the lines through f(x - h) and f(x + h), each with a weight of 1 / h.

    Args:
        scaling: see `_scaling`.
    """
    x = call.inputs[place]
    if scaling == 0:
        wide, spread = _wide_and_spread(x, most)
    else:
        wide, spread = _wide_and_spread(x, math.inf)
        one, zero = (value_at(call, place, full(x), scaling) for full in (torch.ones_like, torch.zeros_like))
        spread = spread.clamp_max(most * (one - zero).abs().reciprocal().clamp_min(1))
    slope = torch.zeros_like(wide)
    for width in widths:
        low, high = (value_at(call, place, wide + side * width * spread) for side in (-1, 1))
        slope = slope + (high - low) / (2 * width**2)
    return (s * (slope / (spread * sum(1 / width for width in widths)))).to(x.dtype)


def _known_secants(
    widths: tuple[float, ...], most: float, number: float, side: int, call: Call, s: Tensor, place: int
) -> Tensor:
    """The same of a comparison with a number, whose secants are known."""
    wide, spread = _wide_and_spread(x := call.inputs[place], most)
    return comparison_signal(s, wide, spread, number, side, widths).to(x.dtype)


def _wide_and_spread(x: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """x in float32 or better, and its spread."""
    wide = x.float() if x.dtype in LOW_PRECISION else x
    return wide, spread_of(wide, most)
