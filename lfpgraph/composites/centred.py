"""`lfp-centred`: LFP for activations that are not zero at zero, such as the sigmoid.

The identity rule hands an activation's whole reward to its input, `s * f(x) / x`. Where f(0) is not zero that ratio is
negative on one side of zero and grows without bound towards it: a positive reward then drives x the wrong way. Here the
constant f(0) keeps its own share, as a bias does, and the input gets the rest: `s * (f(x) - f(0)) / x`, which is positive
for every increasing f. For activations with f(0) = 0 nothing changes. Source: this project; f(0) as a bias, Bach et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.graph import OpGraph
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..numerics import identity_signal
from ..registry import ACTIVATION, Call, Handler, Signals
from ..rules.activations import activation, choice, exponential

__all__ = [
    "activations_of",
    "centred_rule",
    "centred_signal",
    "centred_structure",
    "in_place_of",
    "is_zero_at_zero",
    "sources_of",
    "value_at",
    "values_on",
]

# The node that goes in (None for a single operation), and the operations in order.
_Function = tuple[fx.Node | None, tuple[fx.Node, ...]]


def centred_structure(graph: OpGraph) -> Structure:
    """The usual regions; every activation of one input with the centred rule."""
    found = Structure(find_regions(graph))
    for entry, nodes in activations_of(graph, found):
        if not is_zero_at_zero(entry, nodes):
            found.rules[nodes[-1]] = centred_rule
    return found


def activations_of(graph: OpGraph, structure: Structure) -> list[_Function]:
    """The activations of a graph, single operations and regions; those that select entries by a mask are none."""
    inside = {node for region in structure.regions for node in region.nodes}
    found: list[_Function] = [(r.entry, r.nodes) for r in structure.regions if r.family is ACTIVATION]
    found += [(None, (n,)) for n in graph.operations() if n not in inside and graph.info[n].family is ACTIVATION]
    return [(entry, nodes) for entry, nodes in found if graph.info[nodes[-1]].selects is None]


def is_zero_at_zero(entry: fx.Node | None, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether f(0) is zero whatever the data."""
    found = values_on(entry, nodes, torch.zeros(1, dtype=torch.float64, device="cpu"))
    return found is not None and not bool(found.any())


def sources_of(nodes: tuple[fx.Node, ...]) -> list[fx.Node]:
    """What an activation reads, in order."""
    return list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in nodes))


def values_on(
    entry: fx.Node | None, nodes: tuple[fx.Node, ...], x: Tensor, others: Mapping[fx.Node, Any] | None = None
) -> Tensor | None:
    """f of some numbers, when a plan is made; None where f does not take them, or reads what nothing is given for.

    Args:
        others: for what else f reads, what it is to read instead.
    """
    values: dict[fx.Node, Any] = dict(others or {})
    sources = {*sources_of(nodes)} - values.keys()
    if entry is None and len(sources) == 1:
        entry = next(iter(sources))
    if entry is None or sources != {entry} or not isinstance(entry.meta.get("val"), Tensor):
        return None
    values[entry] = x
    try:
        for node in nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError):  # an operation that does not take a row of numbers: the rule looks at each call
        return None
    found = values[nodes[-1]]
    return found if isinstance(found, Tensor) else None


def centred_rule(usual: Handler, epsilon: float | None = None) -> Handler:
    """The identity rule for what f adds to f(0).

    Args:
        usual: the rule for an activation of several inputs.
        epsilon: the stabilizer of this activation; None for the composite's.
    """
    return in_place_of(usual, partial(centred_signal, epsilon))


def in_place_of(usual: Handler, signal_of: Callable[[Call, Tensor, int], Tensor]) -> Handler:
    """A rule by `signal_of` (see `_for_one_input`) in place of the identity rule; a user's own rule stays."""
    return partial(_for_one_input, usual, signal_of) if usual in (activation, choice, exponential) else usual


def _for_one_input(
    usual: Handler, signal_of: Callable[[Call, Tensor, int], Tensor], call: Call, s: Tensor, *args: Any, **kwargs: Any
) -> Signals:
    """Signals of an activation: of its one active input, by `signal_of(call, s, place)`, and the true vjp for parameters.

    Args:
        usual: the rule for several active inputs.
    """
    if sum(call.active) != 1:
        found: Signals = usual(call, s, *args, **kwargs)
        return found
    place = call.active.index(True)
    signals: Signals = call.vjp(s) if any(call.weightlike) else [None for _ in call.inputs]
    signals[place] = signal_of(call, s, place)
    return signals


def value_at(call: Call, place: int, x: Tensor, first: int | None = None) -> Tensor:
    """What the activation makes of another x, or the first so many operations of it do."""
    with torch.no_grad():
        found: Tensor = call.run([x if i == place else other for i, other in enumerate(call.inputs)], first)
    return found


def centred_signal(own: float | None, call: Call, s: Tensor, place: int) -> Tensor:
    """Signal of x for z = f(x): the reward of what f adds to f(0)."""
    x = call.inputs[place]
    offset = value_at(call, place, torch.zeros([1] * x.dim(), dtype=x.dtype, device=x.device))
    call.stabilized = True  # with an epsilon of its own it absorbs more of the reward than the layer before would
    gain = torch.where(torch.isfinite(offset), call.output - offset, call.output)
    return identity_signal(s, x, gain, call.epsilon if own is None else own)
