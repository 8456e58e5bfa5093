"""Hebb's and Oja's learning rules, modulated by reward, as composites: "hebb" and "oja".

Reward travels as under `lfp-epsilon`. A layer z = W x + b is then trained by what its own neurons did, with the reward
M_j = s_j * z_j of neuron j as the third factor (Fremaux and Gerstner 2016):

    hebb: dW_ij = sum over samples of M_j * z_j * x_i
    oja:  dW_ij = sum over samples of M_j * z_j * x_i - abs(M_j) * z_j^2 * W_ij

Oja's (1982) decay takes the size of M, as a punished weight would grow without end. A bias is the weight of an x of one; a
convolution sums over its places as well. Feedback is not scaled by the weight. Layers are linear, mm, addmm and convolutions
that are not transposed; parameters of other operations get the plain signal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registry import Call, Handler, Signals
from ..rules.linear import CHANNEL_CONVOLUTIONS
from .composite import Composite, Ruleset

__all__ = ["hebb", "oja"]

aten = torch.ops.aten


def hebb(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of z = x @ w + b: the vjp for x; `M * z * x` for w and b."""
    passed = call.vjp(s, again=True)
    learned = call.vjp(s * call.output * call.output)
    return [mine if weight else g for g, mine, weight in zip(passed, learned, call.weightlike)]


def neurons_of(call: Call) -> int:
    """The dimension of a layer's output along which its neurons lie."""
    z = call.output
    by_rows = call.op in COLUMNS or z.dim() < 2  # [..., o]; convolutions have [n, o, ...]
    return z.dim() - 1 if by_rows or call.op is aten.linear.default else z.dim() - call.inputs[1].dim() + 1


def oja(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """As `hebb`, less `abs(M) * z^2 * w` for w and b."""
    z, channel = call.output, neurons_of(call)
    decay = (s * z * z * z).abs().sum([d for d in range(z.dim()) if d != channel])  # abs(M) * z^2 by neuron [o]
    decay = call.direction * decay  # signals that come of a loss are turned round, the size of M is not
    signals: Signals = []
    for g, w, weight in zip(hebb(call, s), call.inputs, call.weightlike):
        if weight and g is not None:
            last = w.dim() == 1 or call.op in COLUMNS  # biases [o], and matrices that are [i, o]
            g = g - w * (decay if last else decay.reshape(-1, *[1] * (w.dim() - 1)))
        signals.append(g)
    return signals


COLUMNS = (aten.mm.default, aten.addmm.default)
LAYERS = (*COLUMNS, aten.linear.default, *CHANNEL_CONVOLUTIONS)


def _plain_for_transposed(rule: Handler) -> Handler:
    """The rule, but the vjp for a transposed convolution, which arrives as the same operation."""

    def chosen(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        transposed = call.op is aten.convolution.default and args[6]
        return call.vjp(s) if transposed else rule(call, s, *args, **kwargs)

    return chosen


def hebbian_composites() -> list[Composite]:
    """Hebb's rule and Oja's, for layers."""
    found = []
    for name, rule in (("hebb", hebb), ("oja", oja)):
        handlers: dict[Any, Any] = dict.fromkeys(LAYERS, _plain_for_transposed(rule))
        found.append(Composite(name, Ruleset(scale="signal", handlers=handlers)))
    return found
