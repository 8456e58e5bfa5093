"""What moves the weights by the feedback: optimizers, and what is done to the feedback before them. An MLP on digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..training.policies import AdaptiveClip, NormalizeByMax
from .common.data import flat_digits
from .common.drawing import draw_bars
from .common.harness import Case, Report, Settings, Way
from .common.models import mlp, seeded
from .common.rates import best_by_folds

__all__ = ["Madam", "muon", "run"]

Named = Sequence[tuple[str, Tensor]]
_USUAL = (1e-3, 3e-3, 1e-2, 3e-2)
# Optimizer and what else a way of training has, and its rates.
KINDS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "AdamW": ({}, _USUAL),
    "AdamW, adaptive clipping": ({"policy": partial(AdaptiveClip, 0.04), "clip": None}, _USUAL),
    "AdamW, divided by the maximum": ({"policy": NormalizeByMax, "clip": None}, _USUAL),
    "SGD": ({"optimizer": "SGD"}, (3e-2, 1e-1, 3e-1, 1.0)),
    "Madam": ({"optimizer": lambda named, lr: Madam([p for _, p in named], lr)}, (3e-3, 1e-2, 3e-2, 1e-1)),
    "Muon": ({"optimizer": lambda named, lr: muon(named, lr)}, _USUAL),
}


def run(settings: Settings) -> Report:
    """Each optimizer, under `lfp` and under backprop, each at its own best rate, chosen by folds as a small part mistakes it."""
    train, test = flat_digits()
    start = seeded(lambda: mlp([64, 128, 64, 10]))

    def one(kind: str, side: str, composite: str | None) -> tuple[Case, str]:
        more, rates = KINDS[kind]
        way = Way(side, composite, cross_entropy, **more)
        return best_by_folds(start(0), way, rates, train, test, settings, epochs=20, name=kind, start=start)

    sides = {"LFP": "lfp", "backprop": None}
    found = settings.runs.together([partial(one, kind, *side) for kind in KINDS for side in sides.items()])
    cases, notes = [case for case, _ in found], [note for _, note in found]
    return Report("optimizers", "accuracy", cases, draw_bars, (13, 4), notes)


class Madam(torch.optim.Optimizer):
    """Multiplicative updates, `w * exp(-lr * sign(w) * g / sqrt(mean of g squared))` (Bernstein et al. 2020, algorithm 1).

    A vector, which often starts at zero, takes Adam's step without momentum instead.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, beta: float = 0.999, most: float = 10.0) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "most": most})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                square = state.setdefault("square", torch.zeros_like(p))
                state["steps"] = state.get("steps", 0) + 1
                square.lerp_(p.grad.square(), 1 - group["beta"])
                root = (square / (1 - group["beta"] ** state["steps"])).sqrt()
                move = torch.where(root > 0, p.grad / root, 0.0).clamp(-group["most"], group["most"])
                if p.dim() < 2:
                    p.sub_(group["lr"] * move)
                else:
                    p.mul_(torch.exp(-group["lr"] * p.sign() * move))


def muon(named: Named, lr: float) -> torch.optim.Optimizer:
    """Muon for the matrices of hidden layers, AdamW for vectors and for the last matrix (Jordan 2024)."""
    matrices = [p for _, p in named if p.dim() == 2][:-1]
    others = [p for _, p in named if not any(p is m for m in matrices)]
    return _Two(torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw"), others, lr)


class _Two(torch.optim.AdamW):
    """AdamW for some parameters, and at each of its steps a step of another optimizer at the same rate for others."""

    def __init__(self, beside: torch.optim.Optimizer, parameters: Sequence[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.beside = beside

    def step(self, closure: Any = None) -> Any:
        for group in self.beside.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self.beside.step()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.beside.zero_grad(set_to_none)
        super().zero_grad(set_to_none)
