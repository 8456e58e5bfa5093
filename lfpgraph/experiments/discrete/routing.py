"""Hard routing: experts of which every digit gets one, chosen by argmax, or the two of the highest scores."""

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
SIZES: dict[str, dict[str, int]] = {
    "eight experts, one chosen": {},
    "32 experts, two chosen": {"experts": 32, "top": 2},
}


class Routed(nn.Module):
    """All experts are computed; a mask lets `top` of them through.

    Args:
        mask: "hard"; "straight-through", as people write it; "switch", where the chance of the chosen one scales it; or
            "frozen", hard with a router that does not train.
    """

    def __init__(self, mask: str = "hard", experts: int = 8, width: int = 1, top: int = 1) -> None:
        super().__init__()
        self.mask, self.experts, self.width, self.top = mask, experts, width, top
        self.router = nn.Linear(64, experts).requires_grad_(mask != "frozen")
        self.up = nn.Linear(64, experts * width)
        self.down = nn.Parameter(torch.randn(experts, width, 10) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(experts, 10))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        if self.top == 1:
            mask = one_hot(scores.argmax(-1), self.experts).to(x.dtype)
        else:
            mask = torch.zeros_like(scores).scatter(-1, scores.topk(self.top, -1).indices, 1.0)
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

    def one(model: str, name: str, composite: str | None, mask: str) -> tuple[list[Case], list[str]]:
        start, way = seeded(partial(Routed, mask, **SIZES[model])), Way(name, composite, cross_entropy)
        return at_best(start(0), [way], RATES, train, test, settings, epochs=20, name=model, start=start)

    ways = [
        ("LFP", "lfp", "hard"),
        ("straight-through", None, "straight-through"),
        ("Switch", None, "switch"),
        ("LFP, Switch", "lfp", "switch"),
        ("backprop", None, "frozen"),
    ]
    found = settings.runs.together([partial(one, model, *way) for model in SIZES for way in ways])
    cases = [case for own, _ in found for case in own]
    notes = ["backprop: no gradient reaches the router, so it is a frozen one", *(n for _, own in found for n in own)]
    return Report("routing", "accuracy", cases, draw_curves, (10, 4), notes)
