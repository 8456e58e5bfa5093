"""`lfp-centred`: LFP for activations that are not zero at zero, such as the sigmoid.

The identity rule hands an activation's whole reward to its input, `s * f(x) / x`. Where f(0) is not zero that ratio is
negative on one side of zero and grows without bound towards it: a positive reward then drives x the wrong way. Here the
constant f(0) keeps its own share, as a bias does, and the input gets the rest: `s * (f(x) - f(0)) / x`, which is positive
for every increasing f. For activations with f(0) = 0 nothing changes. Source: this project; f(0) as a bias, Bach et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..graph.graph import OpGraph
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..numerics import identity_signal
from ..registry import find_rule

__all__ = ["centred_structure"]


def centred_structure(graph: OpGraph) -> Structure:
    """The usual regions; every activation of one input with the centred rule."""
    found = Structure(find_regions(graph))
    inside = {node for region in found.regions for node in region.nodes}
    nodes = [region.exit for region in found.regions if region.kind == "activation"]
    for node in graph.operations():
        entry = find_rule(node.target)
        if node not in inside and entry is not None and entry.family.name == "activation":
            nodes.append(node)
    found.rules = {node: _centred for node in nodes if graph.info[node].selects is None}
    return found


def _centred(usual: Callable[..., Any]) -> Callable[..., Any]:
    def centred(node: Any, s: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Signal of x for z = f(x): the reward of what f adds to f(0)."""
        if sum(node.active) != 1:
            return usual(node, s, *args, **kwargs)
        place = node.active.index(True)
        signals = list(node.vjp(s)) if any(node.weightlike) else [None] * len(node.inputs)
        at_zero = [torch.zeros_like(x) if i == place else x for i, x in enumerate(node.inputs)]
        with torch.no_grad():
            offset = node.run(at_zero)
        node.stabilized = True
        gain = torch.where(torch.isfinite(offset), node.output - offset, node.output)
        signals[place] = identity_signal(s, node.inputs[place], gain, node.epsilon)
        return signals

    return centred
