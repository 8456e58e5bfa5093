"""`lfp-centred`: LFP for activations that are not zero at zero, such as the sigmoid.

The identity rule hands an activation's whole reward to its input, `s * f(x) / x`. Where f(0) is not zero that ratio is
negative on one side of zero and grows without bound towards it: a positive reward then drives x the wrong way. Here the
constant f(0) keeps its own share, as a bias does, and the input gets the rest: `s * (f(x) - f(0)) / x`, which is positive
for every increasing f. For activations with f(0) = 0 nothing changes. Source: this project; f(0) as a bias, Bach et al. 2015.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph.graph import OpGraph
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..numerics import identity_signal
from ..registry import ACTIVATION, Call, Handler, Signals

__all__ = ["centred_structure"]


def centred_structure(graph: OpGraph) -> Structure:
    """The usual regions; every activation of one input with the centred rule."""
    found = Structure(find_regions(graph))
    inside = {node for region in found.regions for node in region.nodes}
    nodes = [region.exit for region in found.regions if region.family is ACTIVATION]
    nodes += [n for n in graph.operations() if n not in inside and graph.info[n].family is ACTIVATION]
    found.rules = {node: _centred for node in nodes if graph.info[node].selects is None}
    return found


def _centred(usual: Handler) -> Handler:
    def centred(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        """Signal of x for z = f(x): the reward of what f adds to f(0)."""
        if sum(call.active) != 1:
            return usual(call, s, *args, **kwargs)
        place = call.active.index(True)
        signals: Signals = call.vjp(s) if any(call.weightlike) else [None for _ in call.inputs]
        at_zero = [torch.zeros_like(x) if i == place else x for i, x in enumerate(call.inputs)]
        with torch.no_grad():
            offset = call.run(at_zero)
        call.stabilized = True
        gain = torch.where(torch.isfinite(offset), call.output - offset, call.output)
        signals[place] = identity_signal(s, call.inputs[place], gain, call.epsilon)
        return signals

    return centred
