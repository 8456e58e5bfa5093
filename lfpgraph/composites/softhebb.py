"""SoftHebb: layers learn what comes in, by a competition among their neurons; nothing travels back. The composite "softhebb".

A layer z = W x + b with u = W x, neurons k, and rows n (samples, and places of a convolution), learns (Moraitis et al. 2022,
arXiv 2107.05747, eq. 8; Journe et al. 2023, arXiv 2209.11883, eq. 1 to 3)

    y_nk = softmax over k of z_nk / temperature, with the other sign for all k but the largest ("soft anti-Hebbian")
    dW_ki = mean over n of  y_nk (x_ni - u_nk W_ki)  *  abs(norm(W_k) - 1) ^ power

The last factor is the rate of a neuron, which goes to zero as its weights reach the length of 1. Layers are linear, mm, addmm
and convolutions that are not transposed. Those that lead to the model's output through no further layer are its heads and
take the true gradient. Hidden layers hand nothing on: their biases stay, and so does what lies before them and is no layer.
Between the last of them and a head there should be a normalisation, as in the papers: without one, the anti-Hebbian change
can leave a relu nothing to pass (chance on digits, where a batch norm gives 97 %).

Source of the mean over rows: batches in the authors' code, which divides by the largest change, too (`policies.NormalizeByMax`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CompositeError
from ..graph.depths import is_layer
from ..graph.graph import OpGraph
from ..graph.structure import Structure
from ..registry import Call, Signals
from .composite import Composite, Ruleset
from .hebbian import COLUMNS, LAYERS, neurons_of

__all__ = ["softhebb"]


def softhebb(name: str = "softhebb", *, temperature: float = 1.0, anti: bool = True, power: float = 0.5) -> Composite:
    """A composite as above; register it, or pass it to `wrap`.

    Args:
        temperature: of the softmax; the smaller, the more the winner takes.
        anti: False lets the losers learn as the winner does.
        power: of the neurons' rates; 0 for one rate.

    Raises:
        CompositeError: a temperature of zero or less, a power below zero.
    """
    if not (temperature > 0 and power >= 0):
        raise CompositeError(
            f"softhebb needs a temperature above 0 and a power of 0 or more; got {temperature}, {power}"
        )

    learning = _Competition(temperature, anti, power)
    # The handlers are those of the structure; with handlers, recurrent layers are unrolled into such layers.
    rules = Ruleset(rules=False, epsilon=0.0, scale="signal", handlers=dict.fromkeys(LAYERS, learning.rule))
    return Composite(name, rules, structure=learning)


@dataclass(frozen=True)
class _Competition:
    """Reads a graph for `softhebb`, whose arguments its fields are, and is the rule of its hidden layers."""

    temperature: float
    anti: bool
    power: float

    def __call__(self, graph: OpGraph) -> Structure:
        heads = _heads(graph)
        hidden = [n for n in graph.operations() if n.target in LAYERS and is_layer(graph, n) and n not in heads]
        return Structure([], rules={node: lambda usual: self.rule for node in hidden})

    def rule(self, call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        if call.op is torch.ops.aten.convolution.default and args[6]:
            return call.vjp(s)
        z, channel = call.output, neurons_of(call)
        others = [d for d in range(z.dim()) if d != channel]
        y = (z / self.temperature).softmax(channel)
        if self.anti:
            y = torch.where(z == z.amax(channel, keepdim=True), y, -y)
        y = y / math.prod(z.shape[d] for d in others)
        u = z
        for w, weight in zip(call.inputs, call.weightlike):
            if weight and w.dim() < 2:
                u = u - (w if w.dim() == 0 else w.reshape([-1 if d == channel else 1 for d in range(z.dim())]))
        decay = (y * u).sum(others)
        signals: Signals = []
        for g, w, weight in zip(call.vjp(y), call.inputs, call.weightlike):
            if g is not None and weight and w.dim() > 1:
                across = 0 if call.op in COLUMNS else tuple(range(1, w.dim()))
                g = g - w * (decay if call.op in COLUMNS else decay.reshape(-1, *[1] * (w.dim() - 1)))
                if self.power:
                    g = g * (torch.linalg.vector_norm(w, dim=across, keepdim=True) - 1).abs() ** self.power
                signals.append(call.direction * g)
            else:
                signals.append(None if g is None else torch.zeros_like(g))
        return signals


def _heads(graph: OpGraph) -> set[fx.Node]:
    """The layers that lead to the output through no further layer."""
    found, seen = set[fx.Node](), set[fx.Node]()
    waiting = [node for node in graph.graph.nodes if node.op == "output"]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                (found.add if is_layer(graph, node) else waiting.append)(node)
    return found
