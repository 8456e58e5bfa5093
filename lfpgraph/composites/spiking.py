"""`lfp-snn`: the LFP paper's rule for spiking neurons, on any graph that has thresholds (Weber et al. 2025).

A spike reads its reward, `r = s * a`, also where it did not happen (`numerics.ZERO_REWARD`), and gives it to its
membrane. A membrane u = beta * u' + W x - reset gives it to its terms by absolute contribution: each term's signal is
`r / (|beta * u'| + |W x|)`, and the reset gets none. A membrane that is no sum (the first step, a step function on a
layer) is its own only term. A membrane behind its reset, `v - spikes * threshold`, hands its reward to v.
So a positive reward raises a membrane, whatever its sign.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.graph import OpGraph
from ..graph.neurons import find_neurons, spiking_regions
from ..graph.structure import Structure
from ..numerics import ZERO_REWARD, identity_signal, stabilize
from ..registry import Call, Handler, Signals

__all__ = ["reads_silence", "spiking_structure"]


def spiking_structure(graph: OpGraph) -> Structure:
    """Thresholds, membranes and resets of a graph with the rules of `lfp-snn`."""
    neurons = find_neurons(graph)
    regions, sums = spiking_regions(graph, neurons)
    structure = Structure(regions + sums, blocked=set(neurons.resets))
    for threshold in neurons.thresholds:
        if threshold.spikes:
            structure.rules[threshold.exit] = _always(spike)
            structure.rules.setdefault(_maker(threshold.entry), _upward)
    structure.rules |= {region.exit: _always(membrane) for region in sums}
    for node, _ in neurons.resets:
        if not any(node in region.nodes for region in sums):
            structure.rules[node] = _always(reset)
    return structure


def reads_silence(composite: Any) -> bool:
    """Whether a composite's thresholds read back the reward of a spike that did not happen (`numerics.ZERO_REWARD`)."""
    return composite is not None and composite.structure is spiking_structure


def _maker(node: fx.Node) -> fx.Node:
    """The operation that computes a node; the items of a tuple are no operations."""
    return node.args[0] if node.target is operator.getitem and node.args[1] == 0 else node  # type: ignore[return-value]


def _always(rule: Handler) -> Callable[[Handler], Handler]:
    """For `Structure.rules`: this rule, whatever the usual one is."""
    return lambda usual: rule


def spike(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signal of the membrane under a threshold: the spike's reward, over the membrane."""
    call.stabilized = True
    reward = s * stabilize(call.output, ZERO_REWARD)
    return [reward / stabilize(x, _epsilon(call)) if a else None for x, a in zip(call.inputs, call.active)]


def membrane(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of the terms of a sum: its reward over the sum of their sizes, each with its sign in the sum."""
    slopes = call.vjp(torch.ones_like(s))
    size = torch.zeros_like(s)
    for x, slope, active in zip(call.inputs, slopes, call.active):
        if active:
            size = size + (x if slope is None else x * slope).abs()
    share = s * stabilize(call.output, _epsilon(call)) / (size + _epsilon(call))
    call.stabilized = True
    return [None if slope is None else share * slope for slope in slopes]


def reset(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signal of a membrane before its reset: an activation's, as what remains is a function of the membrane alone."""
    call.stabilized = True
    return [
        identity_signal(s, x, call.output, _epsilon(call)) if active else None
        for x, active in zip(call.inputs, call.active)
    ]


def _upward(usual: Handler) -> Handler:
    """The rule of an operation whose output is a membrane: its reward over the membrane's size, then as usual."""

    def upward(call: Call, s: Any, *args: Any, **kwargs: Any) -> Any:
        output = call.output
        if not isinstance(output, Tensor):  # batch norm and its like: the first of several outputs
            return usual(call, [torch.where(output[0] < 0, -s[0], s[0]), *s[1:]], *args, **kwargs)
        return usual(call, torch.where(output < 0, -s, s), *args, **kwargs)

    return upward


def _epsilon(call: Call) -> float:
    """The composite's stabilizer, or one for divisions where it has none."""
    return call.epsilon or 1e-12
