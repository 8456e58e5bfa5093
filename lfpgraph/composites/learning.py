"""`lfp`: LFP as it learns best, the published rule changed in four places. Each is an option of its own.

- Products of activations hand the whole vector-Jacobian product to each factor, not an equal share of it
  (`Ruleset.products="whole"`): theorem 1 of the LFP paper carried from layers to products. Reward is not conserved there.
- Vectors (biases, scales of norms) take the plain signal (`Ruleset.vectors="signal"`), so a bias of zero moves.
- Activations that are not zero at zero are centred (see `centred`).
- Steps (comparisons, sign, round) have a wider epsilon: `f(x) / x` of a step has no bound near zero.

Source: this project; docs/design.md says why and what it costs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from ..errors import CompositeError
from ..graph.graph import OpGraph
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..registry import COMPARISON, Call, Handler
from .centred import activations_of, centred_rule, for_one_input, is_zero_at_zero, value_at

__all__ = ["learning_structure"]

aten = torch.ops.aten
_ROUNDINGS = {
    aten.ceil.default,
    aten.floor.default,
    aten.heaviside.default,
    aten.round.decimals,
    aten.round.default,
    aten.sgn.default,
    aten.sign.default,
    aten.trunc.default,
}


def learning_structure(graph: OpGraph, step_epsilon: float = 0.1, secant: float = 0.0) -> Structure:
    """The usual regions, with the rules of `lfp` for activations: `Composite(..., structure=partial(learning_structure, ...))`.

    Args:
        step_epsilon: the stabilizer of a step, in units of what is compared (a membrane, a logit).
        secant: where it is not 0, an activation hands on the slope of its secant, `(f(x + h) - f(x - h)) / 2h` with this h
            in units of x, in place of `f(x) / x`.

    Raises:
        CompositeError: an option is negative.
    """
    if step_epsilon < 0 or secant < 0:
        raise CompositeError(f"step_epsilon={step_epsilon!r} and secant={secant!r} must be zero or more")
    found = Structure(find_regions(graph))
    for entry, nodes in activations_of(graph, found):
        if secant:
            found.rules[nodes[-1]] = partial(_secant_rule, width=secant)
        elif _is_step(graph, entry, nodes):
            found.rules[nodes[-1]] = partial(centred_rule, epsilon=step_epsilon)
        elif not is_zero_at_zero(entry, nodes):
            found.rules[nodes[-1]] = centred_rule
    return found


def _is_step(graph: OpGraph, entry: fx.Node | None, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether every way through a function leads through a comparison or a rounding, so that it is constant in pieces."""
    if entry is None:
        return nodes[0].target in _ROUNDINGS
    direct = {entry}  # what depends on the input other than through a step
    for node in nodes:
        steps = node.target in _ROUNDINGS or graph.info[node].family is COMPARISON
        if not steps and not direct.isdisjoint(node.all_input_nodes):
            direct.add(node)
    return nodes[-1] not in direct


def _secant_rule(usual: Handler, width: float) -> Handler:
    return partial(for_one_input, usual, partial(_secant, width))


def _secant(width: float, call: Call, s: Tensor, place: int) -> Tensor:
    """Signal of x for z = f(x): that of the line through f(x - h) and f(x + h)."""
    x = call.inputs[place]
    return s * ((value_at(call, place, x + width) - value_at(call, place, x - width)) / (2 * width))
