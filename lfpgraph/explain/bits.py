"""Bits for weights by their importance: mixed precision from the scores of `importance`."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import AttributionError

__all__ = ["bits_by_importance", "quantise"]


def bits_by_importance(
    model: nn.Module, scores: Mapping[str, Tensor], mean_bits: float, choices: Sequence[int] = (2, 3, 4, 6, 8)
) -> dict[str, Tensor]:
    """Share a number of bits among rows of weights, so that rounding loses as little relevance as possible.

    A weight's relevance goes with its size, so rounding w to q loses the share `abs(w - q) / abs(w)` of it. Every row begins
    with the fewest bits. Then, again and again, the row that saves the most relevance for each further bit gets the next
    choice, as long as the mean over all entries allows it (greedy allocation by marginal gain).

    Args:
        model: whose weights the scores are for.
        scores: of each entry, from `importance(..., by="weight")`; parameters of one dimension are left out.
        mean_bits: the most bits an entry may have on average.
        choices: bits a row may get, each at least 2.

    Returns:
        Bits of each row (dimension 0: an output feature or channel) by parameter name, [rows], for `quantise`.

    Raises:
        AttributionError: scores that fit no parameter, choices below 2, or a mean below the least choice.

    Source: scores after Becking et al. 2022 (ECQx); allocation by marginal gain as in Shoham and Gersho 1988.
    """
    steps = sorted(set(choices))
    if not steps or steps[0] < 2:
        raise AttributionError(f"choices={list(choices)} must be whole numbers of at least 2 bits")
    if mean_bits < steps[0]:
        raise AttributionError(f"mean_bits={mean_bits} is below the least choice of {steps[0]}")
    weights = _scored(model, scores)
    lost = {name: torch.stack([_lost(w, scores[name], bits) for bits in steps]).tolist() for name, w in weights.items()}
    places = {name: [0] * len(w) for name, w in weights.items()}
    left = (mean_bits - steps[0]) * sum(w.numel() for w in weights.values())
    offers: list[tuple[float, str, int, int]] = []

    def offer(name: str, row: int) -> None:
        """Enter what the row's next choice saves for each bit, and what it costs."""
        at = places[name][row]
        if at + 1 < len(steps):
            cost = (steps[at + 1] - steps[at]) * weights[name][row].numel()
            heapq.heappush(offers, ((lost[name][at + 1][row] - lost[name][at][row]) / cost, name, row, cost))

    for name, w in weights.items():
        for row in range(len(w)):
            offer(name, row)
    while offers:
        _, name, row, cost = heapq.heappop(offers)
        if cost <= left:
            left -= cost
            places[name][row] += 1
            offer(name, row)
    return {name: torch.tensor([steps[place] for place in rows]) for name, rows in places.items()}


def quantise(model: nn.Module, bits: int | Mapping[str, int | Tensor]) -> int:
    """Round weights to a symmetric grid of their row (dimension 0), in place; they stay floats.

    Args:
        model: whose parameters of two or more dimensions are rounded.
        bits: for all of them, or by name (those not named stay as they are), one number or one for each row; at least 2.

    Returns:
        Bits of all rounded entries together; scales apart.

    Raises:
        AttributionError: fewer than 2 bits, a number for no row, or a name that is no parameter of two or more dimensions.
    """
    wide = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    given = dict.fromkeys(wide, bits) if isinstance(bits, int) else dict(bits)
    total = 0
    for name, asked in given.items():
        if name not in wide:
            raise AttributionError(f"{name!r} is no parameter of two or more dimensions of {type(model).__name__}")
        w, numbers = wide[name], torch.as_tensor(asked)
        if numbers.shape not in ((), w.shape[:1]) or int(numbers.min()) < 2:
            raise AttributionError(f"{name!r} of {len(w)} rows needs one number of bits or one for each, at least 2")
        with torch.no_grad():
            w.copy_(_rounded(w, numbers))
        total += int(numbers.expand(len(w)).sum()) * w[0].numel()
    return total


def _scored(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    for name, score in scores.items():
        if name not in parameters or score.shape != parameters[name].shape:
            raise AttributionError(
                f"the scores of {name!r} fit no parameter of {type(model).__name__}; bits need a score of each entry"
            )
    found = {name: parameters[name].detach() for name in scores if parameters[name].dim() > 1}
    if not found:
        raise AttributionError("none of the scores is of a parameter of two or more dimensions")
    return found


def _lost(w: Tensor, score: Tensor, bits: int) -> Tensor:
    """The relevance that rounding takes from each row, [rows]."""
    share = (w - _rounded(w, torch.tensor(bits))).abs() / w.abs()
    return (score.abs() * share).nan_to_num(0.0, 0.0, 0.0).double().flatten(1).sum(1)  # a weight of zero stays zero


def _rounded(w: Tensor, bits: Tensor) -> Tensor:
    """The nearest of `2 ** bits - 1` evenly spaced values from minus to plus the row's largest; bits [] or [rows]."""
    lengths = [-1] + [1] * (w.dim() - 1)
    largest = w.flatten(1).abs().amax(1).view(lengths)
    steps = (2.0 ** (bits - 1) - 1).to(w).expand(len(w)).view(lengths)
    step = (largest / steps).clamp_min(torch.finfo(w.dtype).tiny)
    return (w / step).round() * step
