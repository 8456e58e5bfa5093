"""Scores of weights and units from relevance or feedback summed over data, for pruning and quantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.composite import Composite
from ..errors import AttributionError, RewardError, check_choice
from ..rewards import reward_loss
from .attribution import attribute

__all__ = ["importance", "prune"]


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
    from ..rewards.outputs import outputs_of

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
