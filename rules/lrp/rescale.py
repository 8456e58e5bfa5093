"""DeepLIFT's rescale rule for every operation: how an output differs from its value at a reference point, by what differs before.

A signal here is a multiplier: `sum(s_x * (x - x0)) = s_z * (z - z0)` for the values x, z of this run and x0, z0 of the run at
the reference point (`Call.reference`). What is linear keeps its vjp, which says that already. The others:

- f(x), element by element: the slope of the secant, `(f(x) - f(x0)) / (x - x0)` (Shrikumar et al. 2017, eq. 9).
- a product of several values, sums of squares: the vjp half way between both runs. For two factors these are Shapley's values.
- f(x, y): Shapley's values by running f with one of both.
- softmax: `p_i - p0_i = L_i * (x_i - x0_i - sum_j(w_j * (x_j - x0_j)))`, with L the logarithmic mean of p and p0, and
  `w = L / sum(L)`: exp by its secant, and the one w for which the sum of p stays 1. This project.
- a norm: product, square and root one by one, which adds up exactly.
- a maximum: what is larger than the other run's maximum has the difference (as captum does).
- all others: the vjp averaged over the way from x0 to x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import Call, Handler, Rule, Signals

from .multipliers import averaged, is_float, moving, quotient, vjp_at
from .rescale_norms import normalisation

__all__ = ["HANDLERS"]

aten = torch.ops.aten


def product(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of a product of two or more values: exact for up to three."""
    return averaged(call, s, 1 if len(moving(call)) < 3 else 2)


def general(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of any differentiable function of tensors."""
    return averaged(call, s, 5)


def choice(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of a choice by indices or conditions: one vjp where both runs choose alike, else the mean of both."""
    alike = all(x is x0 or is_float(x) for x, x0 in zip(call.inputs, call.reference))
    return call.vjp(s) if alike else order(call, s)


def order(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of a choice by size: the mean of both runs' vjps, which does not add up where the order differs."""
    here, there = vjp_at(call, s, call.inputs), vjp_at(call, s, call.reference)
    return [g if g0 is None else g0 if g is None else (g + g0) / 2 for g, g0 in zip(here, there)]


def elementwise(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of f(x) and f(x, y), element by element; of more arguments as of any function."""
    places, z, z0 = moving(call), call.output, call.reference_output
    if not 0 < len(places) < 3 or z.is_complex() or any(call.inputs[i].is_complex() for i in places):
        return general(call, s)
    here, there = list(call.inputs), list(call.reference)
    for i in places:  # of the output's shape, so that each entry has its own slope
        here[i], there[i] = (x.expand(z.shape) for x in (here[i], there[i]))
    middle = [(x + x0) / 2 if i in places else x for i, (x, x0) in enumerate(zip(here, there))]
    try:
        slopes = vjp_at(call, torch.ones_like(z), middle)
    except (RuntimeError, NotImplementedError):  # torch has no derivative of steps such as heaviside's
        slopes = [None] * len(middle)
    parts = [z - z0]
    if len(places) == 2:
        first, second = places
        with_first, with_second = list(there), list(there)
        with_first[first], with_second[second] = here[first], here[second]
        one, other = call.run(with_first), call.run(with_second)
        parts = [(z - other + one - z0) / 2, (z - one + other - z0) / 2]
    found: Signals = [None] * len(here)
    for i, part in zip(places, parts):
        if call.wanted[i]:
            slope = slopes[i]
            found[i] = s * quotient(part, here[i], there[i], torch.zeros_like(z) if slope is None else slope)
    return found


def mask(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of a mask of what was chosen, at the scores that it was chosen by, its last argument."""
    z, z0 = (v.masked_fill(v.isinf(), 0.0) for v in (call.output, call.reference_output))
    x, x0 = call.inputs[-1], call.reference[-1]
    return [None] * (len(call.inputs) - 1) + [s * quotient(z - z0, x, x0, torch.zeros_like(s))]


def _softmaxed(s: Tensor, p: Tensor, p0: Tensor, dim: int, logarithm: bool = False) -> Tensor:
    """Multipliers of the scores, from those of their softmax (or of its logarithm)."""
    least = torch.finfo(p.dtype).tiny
    p, p0 = p.clamp_min(least), p0.clamp_min(least)
    apart = p.log() - p0.log()
    near = apart.abs() < 0.1
    series = p.sqrt() * p0.sqrt() * (1 + apart**2 / 24 + apart**4 / 1920)
    means = torch.where(near, series, (p - p0) / torch.where(near, torch.ones_like(apart), apart))
    whole = means.sum(dim, True)
    if logarithm:
        return s - means * (s.sum(dim, True) / whole)
    return means * (s - (means * s).sum(dim, True) / whole)


def softmax(call: Call, s: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of softmax and of its logarithm."""
    z, z0 = call.output, call.reference_output
    logarithm = call.op in (aten._log_softmax.default, aten.log_softmax.int)
    if logarithm:
        z, z0 = z.exp(), z0.exp()
    return [_softmaxed(s, z, z0, dim, logarithm)]


def attention(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of softmax(q k^T + mask) v: two products and a softmax."""
    signal = s[0] if isinstance(s, list | tuple) else s
    is_plain = call.op is aten.scaled_dot_product_attention.default
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names if is_plain else (*names[:3], *names[4:]), args)) | kwargs
    given["masked"] = isinstance(given.get("attn_mask"), Tensor)
    q, k, v, p = _weights(given, call.inputs)
    q0, k0, v0, p0 = _weights(given, call.reference)
    at_scores = _softmaxed(signal @ ((v + v0) / 2).mT, p, p0, -1)
    scale = _scale(given)
    found = [at_scores @ ((k + k0) / 2) * scale, at_scores.mT @ ((q + q0) / 2) * scale, ((p + p0) / 2).mT @ signal]
    heads = call.inputs[1].shape[-3] if call.inputs[1].dim() > 2 else 0
    if given.get("enable_gqa") and heads != q.shape[-3]:
        found[1:] = [g.unflatten(-3, (heads, -1)).sum(-3) for g in found[1:]]
    return [*found, *([at_scores] if given["masked"] else [])]


def _scale(given: dict[str, Any]) -> Any:
    scale = given.get("scale")
    return given["query"].shape[-1] ** -0.5 if scale is None else scale


def _weights(given: dict[str, Any], tensors: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values, those of shared heads repeated, and the weights of the values."""
    q, k, v = tensors[:3]
    if given.get("enable_gqa") and k.shape[-3] != q.shape[-3]:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = q @ k.mT * _scale(given)
    if given["masked"]:
        allowed = tensors[3]
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    if given.get("is_causal"):
        later = torch.ones_like(scores[(0,) * (scores.dim() - 2)], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return q, k, v, aten._safe_softmax.default(scores, -1)


_LEAST = (aten.amin.default, aten.cummin.default, aten.min.default, aten.min.dim)
_GREATEST = (
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.amax.default,
    aten.cummax.default,
    aten.max.default,
    aten.max.dim,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d.default,
    aten.max_pool3d_with_indices.default,
)


def extreme(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of a maximum or minimum: the difference goes to the entry that makes it, in whichever run."""
    alone = not isinstance(call.output, list | tuple)
    z, signal = (v if alone else v[0] for v in (call.output, s))
    if signal is None:
        return [None] * len(call.inputs)
    z0, x, x0 = call.reference_output, call.inputs[0], call.reference[0]
    here = z < z0 if call.op in _LEAST else z > z0
    message = signal * (z - z0)

    def back(g: Tensor, values: Any) -> Tensor:
        found = vjp_at(call, g if alone else [g, *[None] * (len(call.output) - 1)], [values, *call.inputs[1:]])[0]
        return torch.zeros_like(x) if found is None else found

    zero = torch.zeros_like(message)
    part = back(torch.where(here, message, zero), x) + back(torch.where(here, zero, message), x0)
    return [quotient(part, x, x0, back(signal, x)), *[None] * (len(call.inputs) - 1)]


_ORDERS = (
    aten.aminmax.default,
    aten.fractional_max_pool2d.default,
    aten.fractional_max_pool3d.default,
    aten.kthvalue.default,
    aten.median.default,
    aten.median.dim,
    aten.mode.default,
    aten.nanmedian.default,
    aten.nanmedian.dim,
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
)

_BY_KIND: dict[Any, Handler] = {
    "activation": elementwise,
    "attention": attention,
    "choice": choice,
    "contraction": product,
    "custom": general,
    "derived": general,
    "general": general,
    "mask": mask,
    "normalisation": normalisation,
    "product": product,
    "quotient": elementwise,
    "rectifier": elementwise,
    "selection": choice,
    "softmax": softmax,
    **dict.fromkeys((*_GREATEST, *_LEAST), extreme),
    **dict.fromkeys(_ORDERS, order),
}
# Families whose operations are linear (views, sums, pools of means, casts) keep the registry's rule, the vjp.
HANDLERS: dict[Any, Handler | Rule] = {
    kind: Rule(handler, needs_vjp=handler is choice) for kind, handler in _BY_KIND.items()
}
