"""Scores of weights and units from relevance or feedback summed over data; pruning, and bits for weights, by them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite
from ..errors import AttributionError, RewardError, check_choice
from ..rewards import reward_loss
from ..rewards.loss import outputs_of
from .attribution import attribute

__all__ = ["bits_by_importance", "importance", "prune", "quantise"]

_REACHES = tuple(k / 40 for k in range(40, 1, -1))  # of a row's largest entry, that a grid of few bits may end at


def importance(
    model: nn.Module,
    data: Iterable[Any],
    composite: str | Composite = "epsilon",
    *,
    reward: Callable[[Tensor, Any], Tensor] | None = None,
    by: str = "weight",
    absolute: bool = True,
) -> dict[str, Tensor]:
    """How much each parameter took part in what was right: its relevance, or its share of a reward, summed over data.

    Args:
        model: in the mode it shall be judged in (`model.eval()`).
        data: batches (inputs, target), as for `attribute`; with a reward, batches (inputs, labels).
        composite: the rules. A batch norm that it merges into a layer has no score of its own.
        reward: one of `lfpgraph.rewards`, or any function of (outputs, labels) to rewards of the outputs' shape: what is
            handed back is then the reward, as in training, and not the target's own value.
        by: "weight" for a score of each entry, "unit" for one of each row of a parameter (dimension 0: output features,
            channels), summed over the rest.
        absolute: add up sizes over batches, so that use in one direction does not cancel use in the other. Within a
            batch it still does, so small batches tell more.

    Returns:
        Scores by parameter name, of the parameter's shape or [rows], in units of the output (or reward), summed over samples.

    Raises:
        AttributionError: no batch, or an unknown `by`. Those of `attribute`. RewardError: the reward does not fit.

    Source: Yeom et al. 2021 (pruning by LRP); Becking et al. 2022 (quantisation by relevance of weights).
    """
    check_choice("by", by, ("weight", "unit"), AttributionError)
    totals: dict[str, Tensor] = {}
    for inputs, target in data:
        wanted = target if reward is None else _rewarded(reward, target)
        found = attribute(model, inputs, wanted, composite, parameters=True).parameters
        for name, relevance in found.items():
            score = relevance.flatten(1).sum(1) if by == "unit" and relevance.dim() > 1 else relevance
            score = score.abs() if absolute else score
            totals[name] = totals[name] + score if name in totals else score.clone()
    if not totals:
        raise AttributionError("importance needs at least one batch of (inputs, target), and parameters on their way")
    return totals


def _rewarded(reward: Callable[[Tensor, Any], Tensor], labels: Any) -> Callable[[Any], Tensor]:
    """A target whose derivative is the reward's signal: reward per unit of output."""

    def target(result: Any) -> Tensor:
        outputs = outputs_of(result)
        given = reward(outputs.detach(), labels)
        if given.shape != outputs.shape:
            raise RewardError(
                f"reward of shape {list(given.shape)} does not fit outputs of shape {list(outputs.shape)}"
            )
        return -reward_loss(outputs, given)

    return target


def prune(model: nn.Module, scores: dict[str, Tensor], share: float, *, biases: bool = False) -> int:
    """Set the share of entries with the least scores to zero, over all scored parameters together; in place.

    Args:
        model: whose parameters the scores are for.
        scores: from `importance`: of each entry, or of each row ("unit"), whose entries then go together.
        share: between 0 and 1.
        biases: whether parameters of one dimension count, too.

    Returns:
        How many entries are zero now because of this.

    Raises:
        AttributionError: a share outside [0, 1], or scores that fit no parameter.
    """
    if not 0 <= share <= 1:
        raise AttributionError(f"share must lie between 0 and 1, not {share}")
    parameters = dict(model.named_parameters())
    spread: dict[str, Tensor] = {}
    for name, score in scores.items():
        if name not in parameters or score.shape[:1] != parameters[name].shape[:1]:
            raise AttributionError(f"the scores of {name!r} fit no parameter of {type(model).__name__}")
        if parameters[name].dim() > 1 or biases:
            wide = (
                score if score.shape == parameters[name].shape else score.view(-1, *[1] * (parameters[name].dim() - 1))
            )
            spread[name] = wide.expand_as(parameters[name])
    if not spread:
        raise AttributionError("none of the scores is of a parameter of two or more dimensions; pass biases=True")
    flat = torch.cat([s.flatten() for s in spread.values()])
    gone = torch.zeros_like(flat, dtype=torch.bool)
    gone[flat.argsort(stable=True)[: round(share * flat.numel())]] = True
    with torch.no_grad():
        for (name, score), mask in zip(spread.items(), gone.split([s.numel() for s in spread.values()])):
            parameters[name].masked_fill_(mask.view(score.shape), 0.0)
    return int(gone.sum())


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


def quantise(model: nn.Module, bits: int | Mapping[str, int | Tensor], *, fit: str = "largest") -> int:
    """Round weights to a symmetric grid of their row (dimension 0), in place; they stay floats.

    Args:
        model: whose parameters of two or more dimensions are rounded.
        bits: for all of them, or by name (those not named stay as they are), one number or one for each row; at least 2.
        fit: how far a row's grid reaches: "largest", to its largest entry; "squares", to where the row's squared error is
            least, which is better where bits are few.

    Returns:
        Bits of all rounded entries together; scales apart.

    Raises:
        AttributionError: fewer than 2 bits, a number for no row, a name that is no parameter of two or more dimensions, or an
            unknown `fit`.
    """
    check_choice("fit", fit, ("largest", "squares"), AttributionError)
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
            w.copy_(_rounded(w, numbers, _REACHES if fit == "squares" else (1.0,)))
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


def _rounded(w: Tensor, bits: Tensor, reaches: Sequence[float] = (1.0,)) -> Tensor:
    """The nearest of `2 ** bits - 1` evenly spaced values from minus to plus a reach; bits [] or [rows].

    The reach is a share of the row's largest entry: of those given, the one with the least squared error.
    """
    lengths = [-1] + [1] * (w.dim() - 1)
    largest = w.flatten(1).abs().amax(1).view(lengths)
    most = (2.0 ** (bits - 1) - 1).to(w).expand(len(w)).view(lengths)
    found, least = w, torch.full_like(largest, torch.inf, dtype=torch.float32)
    for reach in reaches:
        step = (reach * largest / most).clamp_min(torch.finfo(w.dtype).tiny)
        rounded = torch.minimum((w / step).round().abs(), most).copysign(w) * step
        error = (rounded - w).float().square().flatten(1).sum(1).view(lengths)
        found = torch.where(error < least, rounded, found)
        least = torch.minimum(error, least)
    return found
