"""How faithful an explanation is: what happens to the output as inputs are taken away in the order it gives.

Every function here takes relevance that was computed before, by any method, one row for each sample, and a function that
scores perturbed inputs. So all methods are measured in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import AttributionError

__all__ = [
    "PerturbationCurves",
    "comprehensiveness",
    "perturbation_curves",
    "sufficiency",
    "token_erasure",
    "token_perturbation",
    "top1_accuracy",
]

Score = Callable[[Tensor], Tensor]


@dataclass
class PerturbationCurves:
    """The score of each sample as its features are replaced one step after the other.

    Attributes:
        morf: most relevant first, [n, steps + 1]; lerf: least relevant first, [n, steps + 1]. Column 0 is unperturbed.
    """

    morf: Tensor
    lerf: Tensor

    @property
    def abpc(self) -> Tensor:
        """Area between the curves, mean of lerf - morf over the steps, [n], in units of the score; more is better.

        Source: Samek et al. 2017 (area over the MoRF curve), Achtibat et al. 2024 (area between, for both orders).
        """
        return (self.lerf - self.morf)[:, 1:].mean(1)

    @property
    def aopc(self) -> Tensor:
        """Area over the MoRF curve, mean drop of the score over the steps, [n] (Samek et al. 2017, eq. 12)."""
        return (self.morf[:, :1] - self.morf).mean(1)


def perturbation_curves(
    score: Score,
    inputs: Tensor,
    relevance: Tensor,
    *,
    steps: int = 10,
    replace: float | Tensor = 0.0,
    region: int = 1,
) -> PerturbationCurves:
    """Replace features in order of relevance and record the score.

    Args:
        score: perturbed inputs [n, ...] to one score for each sample [n], e.g. the target's logit or probability.
        inputs: [n, ...], or images [n, c, h, w], whose channels are replaced together.
        relevance: of the inputs' shape; or without channels, [n, h, w].
        steps: how many steps from nothing to everything replaced.
        replace: what stands for a removed feature, a number or a tensor that broadcasts to the inputs.
        region: side of the square patches of an image that are replaced at once.

    Raises:
        AttributionError: shapes that do not fit, or a region that does not divide the image.
    """
    order, spread = _features(inputs, relevance, region)
    count = order.shape[1]
    if not 1 <= steps <= count:
        raise AttributionError(f"steps must lie between 1 and {count}, the number of features; got {steps}")
    ranks = _ranks(order)  # 0 for the most relevant
    curves: dict[bool, list[Tensor]] = {True: [], False: []}
    for step in range(steps + 1):
        gone = round(step * count / steps)
        for most in (True, False):
            removed = ranks < gone if most else ranks >= count - gone
            found = score(torch.where(spread(removed), _as(replace, inputs), inputs))
            if not isinstance(found, Tensor) or found.shape != inputs.shape[:1]:
                what = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise AttributionError(
                    f"the score must be a tensor of one number for each of {len(inputs)} samples, not {what}"
                )
            curves[most].append(found.detach())
    return PerturbationCurves(torch.stack(curves[True], 1), torch.stack(curves[False], 1))


_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)


def comprehensiveness(
    score: Score,
    inputs: Tensor,
    relevance: Tensor,
    fractions: Sequence[float] = _FRACTIONS,
    *,
    replace: float | Tensor = 0.0,
    region: int = 1,
    keep: bool = False,
) -> Tensor:
    """Mean drop of the score without the most relevant features, [n]; more is better (DeYoung et al. 2020, section 5).

    Args:
        score, inputs, relevance, replace, region: as for `perturbation_curves`.
        fractions: the shares of features.
        keep: remove all others instead, as `sufficiency` does.
    """
    order, spread = _features(inputs, relevance, region)
    count = order.shape[1]
    ranks = _ranks(order)
    whole = score(inputs).detach()
    drops = []
    for fraction in fractions:
        best = ranks < max(1, round(fraction * count))
        removed = ~best if keep else best
        drops.append(whole - score(torch.where(spread(removed), _as(replace, inputs), inputs)).detach())
    return torch.stack(drops).mean(0)


def sufficiency(
    score: Score, inputs: Tensor, relevance: Tensor, fractions: Sequence[float] = _FRACTIONS, **how: Any
) -> Tensor:
    """Mean drop of the score with the most relevant features alone, [n]; less is better (DeYoung et al. 2020).

    `how` takes `replace` and `region`; the other arguments are those of `comprehensiveness`.
    """
    return comprehensiveness(score, inputs, relevance, fractions, keep=True, **how)


def token_perturbation(
    score: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    relevance: Tensor,
    mask: Tensor | None = None,
    steps: int = 10,
) -> PerturbationCurves:
    """Perturbation curves of text, where a removed token is masked out or replaced (Achtibat et al. 2024, appendix B).

    Args:
        score: (tokens, kept) to one score for each sample; `kept` [n, length] is false at removed tokens.
        tokens: ids [n, length]. relevance: [n, length].
        mask: true at tokens that may be removed (no padding, no special tokens); all by default.
    """
    free = _free(tokens, relevance, mask)
    count = free.sum(1, keepdim=True)
    curves: dict[bool, list[Tensor]] = {True: [], False: []}
    for most in (True, False):
        keyed = torch.where(free, relevance if most else -relevance, -torch.inf)
        ranks = _ranks(keyed)
        for step in range(steps + 1):
            gone = torch.round(count * (step / steps))
            curves[most].append(score(tokens, ~(free & (ranks < gone))).detach())
    return PerturbationCurves(torch.stack(curves[True], 1), torch.stack(curves[False], 1))


def token_erasure(
    score: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    relevance: Tensor,
    mask: Tensor | None = None,
    fractions: Sequence[float] = _FRACTIONS,
) -> tuple[Tensor, Tensor]:
    """Comprehensiveness and sufficiency of text, each [n], with shares of each sample's own tokens (DeYoung et al. 2020).

    Args are those of `token_perturbation`, and the shares of tokens; of a text a share is at least one token.
    """
    free = _free(tokens, relevance, mask)
    ranks = _ranks(torch.where(free, relevance, -torch.inf))
    count = free.sum(1, keepdim=True)
    whole = score(tokens, torch.ones_like(free)).detach()
    without, alone = [], []
    for fraction in fractions:
        best = free & (ranks < torch.round(fraction * count).clamp_min(1))
        without.append(whole - score(tokens, ~best).detach())
        alone.append(whole - score(tokens, ~free | best).detach())
    return torch.stack(without).mean(0), torch.stack(alone).mean(0)


def top1_accuracy(relevance: Tensor, truth: Tensor) -> Tensor:
    """Share of samples whose most relevant feature is a right one, a scalar (as for questions with one known answer token).

    Args:
        relevance: [n, features]; truth: true where a feature is right, [n, features].
    """
    if relevance.shape != truth.shape:
        raise AttributionError(f"relevance {list(relevance.shape)} and truth {list(truth.shape)} must have one shape")
    best = relevance.flatten(1).argmax(1, keepdim=True)
    return truth.flatten(1).bool().gather(1, best).double().mean()


def _free(tokens: Tensor, relevance: Tensor, mask: Tensor | None) -> Tensor:
    """Which tokens may be removed, [n, length]."""
    if relevance.shape != tokens.shape:
        raise AttributionError(f"relevance {list(relevance.shape)} must have the tokens' shape {list(tokens.shape)}")
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()


def _features(inputs: Tensor, relevance: Tensor, region: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Relevance of each removable feature [n, features], and a function from chosen features to a mask of the inputs."""
    image = inputs.dim() == 4
    if image and relevance.shape == (inputs.shape[0], *inputs.shape[2:]):
        relevance = relevance[:, None]
    if (
        relevance.dim() != inputs.dim()
        or relevance.shape[0] != inputs.shape[0]
        or relevance.shape[2:] != inputs.shape[2:]
    ):
        raise AttributionError(f"relevance {list(relevance.shape)} does not fit inputs {list(inputs.shape)}")
    if not image:
        return relevance.flatten(1), lambda chosen: chosen.view(inputs.shape)
    n, _, h, w = inputs.shape
    if h % region or w % region:
        raise AttributionError(f"regions of {region} do not divide images of {h} x {w}")
    by_place = relevance.sum(1).reshape(n, h // region, region, w // region, region).sum((2, 4))

    def spread(chosen: Tensor) -> Tensor:
        places = chosen.view(n, 1, h // region, w // region)
        return places.repeat_interleave(region, 2).repeat_interleave(region, 3)

    return by_place.flatten(1), spread


def _ranks(order: Tensor) -> Tensor:
    """The rank of each entry in its row, 0 for the largest; equal entries keep their order."""
    return order.argsort(stable=True, dim=1, descending=True).argsort(1)


def _as(replace: float | Tensor, inputs: Tensor) -> Tensor:
    return torch.as_tensor(replace, dtype=inputs.dtype, device=inputs.device)
