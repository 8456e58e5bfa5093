"""Hard routing: eight experts of one hidden unit each, of which every digit gets one, chosen by argmax."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ..common.data import flat_digits
from ..common.drawing import draw_curves
from ..common.harness import Case, Report, Settings, Way, fit
from ..common.models import seeded
from ..common.rates import chosen_rates

__all__ = ["Routed", "run"]

RATES = (1e-2, 3e-2, 6e-2, 1e-1)


class Routed(nn.Module):
    """All experts are computed; a mask lets one of them through.

    Args:
        mask: "hard"; "straight-through", as people write it; "switch", where the chance of the chosen one scales it; or
            "frozen", hard with a router that does not train.
    """

    def __init__(self, mask: str = "hard", experts: int = 8, width: int = 1) -> None:
        super().__init__()
        self.mask, self.experts, self.width = mask, experts, width
        self.router = nn.Linear(64, experts).requires_grad_(mask != "frozen")
        self.up = nn.Linear(64, experts * width)
        self.down = nn.Parameter(torch.randn(experts, width, 10) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(experts, 10))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        mask = one_hot(scores.argmax(-1), self.experts).to(x.dtype)
        if self.mask == "straight-through":
            chances = scores.softmax(-1)
            mask = mask + chances - chances.detach()
        elif self.mask == "switch":
            mask = mask * scores.softmax(-1)
        hidden = torch.relu(self.up(x)).unflatten(-1, (self.experts, self.width))
        answers = torch.einsum("neh,eho->neo", hidden, self.down) + self.bias
        return (mask.unsqueeze(-1) * answers).sum(1)


def run(settings: Settings) -> Report:
    """`lfp` on the plain mask, and what backprop has: three ways to write the mask, and a router that stays as it is."""
    train, test = flat_digits()
    cases: list[Case] = []
    notes = ["backprop: no gradient reaches the router, so it is a frozen one"]
    for name, composite, mask in (
        ("LFP", "lfp", "hard"),
        ("straight-through", None, "straight-through"),
        ("Switch", None, "switch"),
        ("LFP, Switch", "lfp", "switch"),
        ("backprop", None, "frozen"),
    ):
        start = seeded(lambda mask=mask: Routed(mask))  # type: ignore[misc]
        way = Way(name, composite, cross_entropy)
        how: dict[str, Any] = {"epochs": 20, "name": "routing", "start": start}
        (chosen,) = chosen_rates(start(0), [way], RATES, train, settings, **how)
        rate = chosen.more["lr"]
        (case,) = fit(start(0), [replace(way, lr=rate)], train, test, settings, **how)
        case.more |= chosen.more
        cases.append(case)
        notes.append(f"{name}: rate {rate:g}, chosen on a validation part")
    return Report("routing", "accuracy", cases, draw_curves, (6, 4), notes)
