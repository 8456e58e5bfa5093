"""The objectives of post-training, of energies, correlation and contrast, as losses written out for autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lfpgraph.rewards import PolicyGradient

__all__ = ["PAPERS", "contrast_loss", "correlation_loss", "energy_loss"]


def means(x: Tensor, mask: Tensor, over: str, length: float = 1.0) -> Tensor:
    x = torch.where(mask, x, 0.0)
    if over == "tokens":
        return x.sum() / mask.sum()
    return (x.sum(1) / (mask.sum(1) if over == "sequences" else length)).mean()


def clipped(ratio: Tensor, a: Tensor, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def k3(p: Tensor, reference: Tensor) -> Tensor:
    return (reference - p).exp() - (reference - p) - 1


def sums(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum(1, keepdim=True)


# Each of the papers' objectives as a loss of p, old, reference, advantages [n, 1] and the mask, for autograd.
PAPERS: dict[str, tuple[PolicyGradient, Any]] = {
    "sft": (PolicyGradient.sft(), lambda p, o, q, a, m: means(-p * a, m, "tokens")),
    "dft": (PolicyGradient.dft(), lambda p, o, q, a, m: means(-p.detach().exp() * p * a, m, "tokens")),
    "reinforce": (PolicyGradient.reinforce(), lambda p, o, q, a, m: means(-p * a, m, "sums")),
    "rloo": (
        PolicyGradient.rloo(),
        lambda p, o, q, a, m: clipped(sums(p - o, m).exp(), a, 0.2, 0.2).mean(),
    ),
    "ppo": (PolicyGradient.ppo(), lambda p, o, q, a, m: means(clipped((p - o).exp(), a, 0.2, 0.2), m, "tokens")),
    "grpo": (
        PolicyGradient.grpo(0.1, 0.3, kl=0.04),
        lambda p, o, q, a, m: means(clipped((p - o).exp(), a, 0.1, 0.3) + 0.04 * k3(p, q), m, "sequences"),
    ),
    "grpo, weighted divergence": (
        PolicyGradient.grpo(kl=0.04, kl_weighted=True),
        lambda p, o, q, a, m: means(
            clipped((p - o).exp(), a, 0.2, 0.2) + 0.04 * (p - o).exp() * k3(p, q), m, "sequences"
        ),
    ),
    "grpo, two sides": (
        PolicyGradient.grpo(most=1.5),
        lambda p, o, q, a, m: means(
            -torch.minimum((p - o).exp().clamp_max(1.5) * a, (p - o).exp().clamp(0.8, 1.2) * a), m, "sequences"
        ),
    ),
    "dr_grpo": (
        PolicyGradient.dr_grpo(9),
        lambda p, o, q, a, m: means(clipped((p - o).exp(), a, 0.2, 0.2), m, "sums", 9),
    ),
    "dapo": (PolicyGradient.dapo(), lambda p, o, q, a, m: means(clipped((p - o).exp(), a, 0.2, 0.28), m, "tokens")),
    "gspo": (
        PolicyGradient.gspo(0.03, 0.04),
        lambda p, o, q, a, m: clipped((sums(p - o, m) / m.sum(1, keepdim=True)).exp(), a, 0.03, 0.04).mean(),
    ),
    "cispo": (
        PolicyGradient.cispo(1.1),
        lambda p, o, q, a, m: means(-(p - o).exp().clamp_max(1.1).detach() * a * p, m, "tokens"),
    ),
}


def energy_loss(o: Tensor, labels: Tensor) -> Tensor:
    e = o.flatten() if o.dim() == 1 or o.shape[1] == 1 else -o.logsumexp(1)
    return e[labels > 0].mean() - e[labels == 0].mean() + 0.1 * (e**2).mean()


def correlation_loss(o: Tensor, t: Tensor) -> Tensor:
    return sum(1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(o.flatten(1).T, t.flatten(1).T))


def contrast_loss(o: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(o)
    found = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        mates = [p for p in others if labels[p] == labels[i]]
        below = torch.stack([z[i] @ z[a] / 0.5 for a in others]).logsumexp(0)
        found += [-torch.stack([z[i] @ z[p] / 0.5 - below for p in mates]).mean()] if mates else []
    return torch.stack(found).mean()
