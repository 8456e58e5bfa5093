"""Choices under `lfp`: every alternative is credited with what it would have brought, not the chosen one alone.

A mask made by argmax, topk or a draw (`graph.selections`) lets chosen entries through: `mask * values`. The signal that arrives
at an entry of the mask is what the output would gain if that entry were let through, chosen or not: a counterfactual, c. Two
rules follow.

- The scores that chose get the contrast of the alternatives, `p * (c - sum(p * c)) / max(t, 1)` with `p = softmax(scores / t)`:
  the gain of a policy that chooses by p. The temperature t is a share (`sharpness`) of the spread of the scores, so p does not
  hang on their units. Where entries were drawn by chances p, the chances themselves get `c - sum(p * c)`.
- A lookup, `values[argmax(scores)]`, is taken as the product of such a mask with the values.
- What the mask lets through learns a little where it was not chosen: as if a share of the choices (`blind_share`) were made
  blindly. Otherwise an expert that is not chosen stays as bad as it is, and is not chosen.

Source: this project; the contrast is the policy gradient's (Williams 1992) with the mean over all alternatives as its baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CompositeError
from ..graph.graph import ACTIVE, OpGraph
from ..graph.selections import Choice, Lookup, choice_of, lookup_of
from ..graph.structure import Structure
from ..registry import CAST, CONTRACTION, PRODUCT, VIEW, Call, Handler, Signals
from ..rules.activations import choice as choice_rule
from ..rules.views import vjp

__all__ = ["BLIND_SHARE", "SHARPNESS", "add_choices"]

BLIND_SHARE, SHARPNESS = 0.1, 0.3  # chosen on validation parts; see docs/experiments.md, routing


def add_choices(graph: OpGraph, found: Structure, blind_share: float, sharpness: float) -> None:
    """Give the masks of a graph, and the products with them, the rules above.

    Raises:
        CompositeError: `blind_share` is not between 0 and 1, or `sharpness` not above 0.
    """
    if not (0 <= blind_share <= 1 and sharpness > 0):
        raise CompositeError(f"blind_share={blind_share!r} must be 0 to 1, and sharpness={sharpness!r} above 0")

    def is_active(node: fx.Node) -> bool:
        return graph.info[node].kind == ACTIVE

    for node in graph.operations():
        if graph.info[node].selects is not None:
            choice = choice_of(node, is_active)
            if choice is None or not choice.direction:
                continue
            found.rules[node] = _in_place_of(choice_rule, partial(_of_mask, choice, sharpness))
            for product, mask in _products(graph, node) if blind_share else ():
                found.rules[product] = _in_place_of(vjp, partial(_with_alternatives, mask, blind_share))
        elif graph.info[node].part == "network" and (lookup := lookup_of(node, is_active)) is not None:
            found.further[node] = lookup.choice.source
            found.rules[node] = _in_place_of(vjp, partial(_of_lookup, lookup, blind_share, sharpness))


def _products(graph: OpGraph, mask: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The operations that multiply a mask with something, and the mask as each of them sees it: behind views and casts."""
    found, stack = [], [mask]
    while stack:
        node = stack.pop()
        for user in node.users:
            family = graph.info[user].family if user in graph.info else None
            if family in (VIEW, CAST) and len(user.all_input_nodes) == 1:
                stack.append(user)
            elif family in (PRODUCT, CONTRACTION) and graph.info[user].part == "network":
                found.append((user, node))
    return found


def _in_place_of(known: Handler, rule: Handler) -> Callable[[Handler], Handler]:
    """For `Structure.rules`: this rule in place of a known one; another one, such as a user's own, stays."""
    return lambda usual: rule if usual is known else usual


def _of_mask(choice: Choice, sharpness: float, call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signal of the scores that a mask was chosen by; s is what each entry of the mask would bring."""
    return [*[None] * (len(call.inputs) - 1), _contrast(choice, sharpness, call.inputs[-1], s)]


def _of_lookup(
    lookup: Lookup, blind_share: float, sharpness: float, call: Call, s: Tensor, *args: Any, **kwargs: Any
) -> Signals:
    """Signals of the values that were looked up in, and of the scores that their places were chosen by."""
    signals = call.vjp(s)
    # Where it is not, nothing that is to learn made the scores, and none asks for their signal.
    if call.sources[-1] is not lookup.choice.source:
        return signals
    values, scores = call.inputs[0], call.inputs[-1]
    lead = scores.dim() - 1
    total = s.sum(lead) if lookup.several else s  # [..., rest]
    rest = tuple(range(lead + 1, total.dim() + 1))
    rows = call.inputs[1].reshape(-1).expand(scores.shape[0]) if lookup.kind == "pairs" else None
    seen = values if rows is None else values[rows]
    kept = seen.abs() <= torch.finfo(seen.dtype).max / 2  # a mask leaves out by the rest, which brings nothing
    gains = torch.where(kept, total.unsqueeze(lead) * seen, 0.0)
    if signals[0] is not None:
        blind = total.unsqueeze(lead).expand_as(gains)
        if rows is not None:
            blind = torch.zeros_like(values).index_add(0, rows, blind)
        signals[0] = torch.lerp(signals[0], blind.sum_to_size(values.shape) / scores.shape[-1], blind_share)
    signals[-1] = _contrast(lookup.choice, sharpness, scores, gains.sum(rest) if rest else gains)
    return signals


def _contrast(choice: Choice, sharpness: float, x: Tensor, gains: Tensor) -> Tensor:
    """Signal of the scores x, of which each alternative would bring `gains`."""
    dims = choice.dims or tuple(range(x.dim()))
    low = x.dtype in (torch.float16, torch.bfloat16)
    wide, gains = (x.float(), gains.float()) if low else (x, gains)
    if choice.drawn:
        total = wide.sum(dims, keepdim=True)
        signal = (gains - (wide * gains).sum(dims, keepdim=True) / total) / total
    else:
        p, temperature = _chances(choice.direction * wide, dims, sharpness)
        contrast = gains - (p * gains).sum(dims, keepdim=True)
        signal = choice.direction * p * contrast / temperature.clamp_min(1.0)
    return signal.to(x.dtype)


def _chances(scores: Tensor, dims: tuple[int, ...], sharpness: float) -> tuple[Tensor, Tensor]:
    """The softmax of scores, and its temperature; a score of infinity, by which an entry is left out, counts for neither."""
    finite = scores.isfinite()
    known = torch.where(finite, scores, 0.0)
    mean = known.sum(dims, keepdim=True) / finite.sum(dims, keepdim=True).clamp_min(1)
    spread = (torch.where(finite, known - mean, 0.0).square().sum() / finite.sum().clamp_min(1)).sqrt()
    temperature = torch.where(spread > 0, sharpness * spread, 1.0)
    return _softmax(torch.where(finite, scores, -torch.inf) / temperature, dims), temperature


def _softmax(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Over several dimensions together."""
    return (x - x.logsumexp(dims, keepdim=True)).exp()


def _with_alternatives(mask: fx.Node, blind_share: float, call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of a product with a mask: the vjp, but what the mask lets through sees a mask that is blind in part."""
    signals = call.vjp(s)
    tensors, others = list(call.inputs), []
    for i, (x, source) in enumerate(zip(call.inputs, call.sources)):
        if source is mask:
            tensors[i] = x + blind_share * (x.mean() - x)
        elif call.wanted[i] and x.is_floating_point():
            tensors[i] = x.detach().requires_grad_()
            others.append(i)
    if others:
        with torch.enable_grad():
            z = call.run(tensors)
        found = torch.autograd.grad(z, [tensors[i] for i in others], s)
        for i, signal in zip(others, found):
            signals[i] = signal
    return signals
