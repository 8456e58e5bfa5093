"""Hard routing: eight experts of one hidden unit each, of which every digit gets one, chosen by argmax."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ..common.data import flat_digits
from ..common.drawing import draw_curves
from ..common.harness import Case, Report, Settings, Way
from ..common.models import seeded
from ..common.rates import at_best

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

    def one(name: str, composite: str | None, mask: str) -> tuple[list[Case], list[str]]:
        start, way = seeded(lambda: Routed(mask)), Way(name, composite, cross_entropy)
        return at_best(start(0), [way], RATES, train, test, settings, epochs=20, name="routing", start=start)

    found = settings.runs.together(
        [
            partial(one, "LFP", "lfp", "hard"),
            partial(one, "straight-through", None, "straight-through"),
            partial(one, "Switch", None, "switch"),
            partial(one, "LFP, Switch", "lfp", "switch"),
            partial(one, "backprop", None, "frozen"),
        ]
    )
    cases = [case for own, _ in found for case in own]
    notes = ["backprop: no gradient reaches the router, so it is a frozen one", *(n for _, own in found for n in own)]
    return Report("routing", "accuracy", cases, draw_curves, (6, 4), notes)
