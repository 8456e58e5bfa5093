"""Rules of AttnLRP and CP-LRP for normalisations, attention and gates, and zennit's for a norm that stands alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from lfpgraph.numerics import identity_signal
from lfpgraph.registry import ACTIVATION, PRODUCT, RECTIFIER, Call, Rule, Signals, find_rule

from ..linear import contraction
from ..norms import ROOTS, SPREADS
from ..views import nothing

__all__ = ["DETACHED_NORM", "STILL_SOFTMAX", "gated_product", "identity_norm", "value_attention"]

aten = torch.ops.aten

_FUSED_LAYER = {aten.layer_norm.default, aten.native_layer_norm.default}
_FUSED_RMS = {aten.rms_norm.default, aten._fused_rms_norm.default}


def detached_norm(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Signals of a normalisation whose scale counts as a constant; its mean does not (AttnLRP prop. 3.4; LXT).

    Layer and RMS norms, and norms written out. What has its scale from elsewhere (a batch norm in eval mode) is linear
    already; group and instance norms are reshaped layer norms.
    """
    if call.is_region:
        return call.vjp(s)  # the statistics are no part of the tape (`Rule.constants`)
    if call.op in _FUSED_LAYER or call.op in _FUSED_RMS:
        signal = s[0] if isinstance(s, list | tuple) else s
        return _last_dims(call, signal, *args, **kwargs)
    if call.op in (aten.group_norm.default, aten.instance_norm.default):
        return _by_group(call, s, *args)
    return call.vjp(s)


DETACHED_NORM = Rule(detached_norm, constants=SPREADS | ROOTS)


def _last_dims(
    call: Call, s: Tensor, x: Tensor, shape: Any, weight: Tensor | None = None, *rest: Any, **kwargs: Any
) -> Signals:
    """Layer norm (s - mean(s)) / std and RMS norm s / rms, with s times the weight."""
    dims = list(range(x.dim() - len(shape), x.dim()))
    is_rms = call.op in _FUSED_RMS
    given = rest[:1] if is_rms else rest[1:2]
    eps = given[0] if given else kwargs.get("eps")
    if eps is None:
        eps = torch.finfo(x.dtype).eps if is_rms else 1e-5
    signal = s if weight is None else s * weight
    if is_rms:
        return _answers(call, s, signal * torch.rsqrt(x.square().mean(dims, True) + eps))
    signal = signal * torch.native_layer_norm(x, shape, None, None, eps)[2]  # 1 / std, in one pass over x
    return _answers(call, s, signal - signal.mean(dims, True))


def _by_group(call: Call, s: Tensor, x: Tensor, *args: Any) -> Signals:
    """The same over the channels of a group (group norm) or over each channel (instance norm), places included."""
    is_group = call.op is aten.group_norm.default
    if not is_group and not args[4]:
        return call.vjp(s)  # running statistics: linear
    groups = args[0] if is_group else x.shape[1]
    weight = (args[1] if len(args) > 1 else None) if is_group else args[0]
    eps = (args[3] if len(args) > 3 else 1e-5) if is_group else args[6]
    signal = s if weight is None else s * weight.view(1, -1, *[1] * (x.dim() - 2))
    flat = (x.shape[0], groups, -1)
    scale = torch.rsqrt(x.reshape(flat).var(-1, correction=0, keepdim=True) + eps)
    signal = signal.reshape(flat) * scale
    return _answers(call, s, (signal - signal.mean(-1, True)).reshape(x.shape))


def _answers(call: Call, s: Tensor, to_x: Tensor) -> Signals:
    """The signal of x, the first argument; weights that want one have the true vjp."""
    others = any(call.wanted[1:])
    signals = (
        call.vjp([s, None, None] if isinstance(call.output, tuple) else s) if others else [None] * len(call.inputs)
    )
    return [to_x, *signals[1:]]


def identity_norm(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Each entry hands its reward on unchanged, mean and bias notwithstanding (zennit's Pass rule for batch norms)."""
    signal, z = (s[0], call.output[0]) if isinstance(s, list | tuple) else (s, call.output)
    call.stabilized = True
    signals = call.vjp(s) if any(call.wanted[1:]) else [None] * len(call.inputs)
    return [identity_signal(signal, call.inputs[0], z, call.epsilon), *signals[1:]]


# A softmax that counts as a constant, so that the values take all (CP-LRP; Ali et al. 2022).
STILL_SOFTMAX = Rule(nothing, blocks=True)


def value_attention(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Fused attention whose weights count as constants: the values take all (CP-LRP; Ali et al. 2022)."""
    signals = call.vjp(s)
    return [g if i == 2 else None for i, g in enumerate(signals)]


def gated_product(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """A product with a gate: the factor that is no activation function's result takes all (Arras et al. 2019; CP-LRP)."""
    factors = [n for n, active in zip(call.sources, call.active) if active]
    gates = [n for n in factors if _is_gate(n)]
    if len(factors) != 2 or len(gates) != 1:
        return contraction(call, s, *args, **kwargs)
    return [None if n is gates[0] else g for n, g in zip(call.sources, call.vjp(s))]


def _is_gate(node: fx.Node) -> bool:
    """Whether a value is an activation function's, views and casts aside."""
    while node.op == "call_function":
        entry = find_rule(node.target)
        if entry is None:
            return False
        if entry.family in (ACTIVATION, RECTIFIER, PRODUCT):
            return entry.family is not PRODUCT or _is_self_gated(node)
        if not entry.family.passes_form or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return False


def _is_self_gated(node: fx.Node) -> bool:
    """Whether a product is x * f(x), as SiLU and GELU are written out."""
    sources = node.all_input_nodes
    return len(sources) == 2 and any(_is_gate(n) and other in _behind(n) for n, other in (sources, sources[::-1]))


def _behind(node: fx.Node, steps: int = 8) -> set[fx.Node]:
    """The node and what it is computed from, at most so many operations back."""
    found = {node}
    for _ in range(steps):
        found |= {n for m in found for n in m.all_input_nodes}
    return found
