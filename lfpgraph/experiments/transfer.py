"""Transfer: digits 0 to 4 by backprop, then 5 to 9 by each way from there (LFP, section on transfer)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..demo.data import Arrays, digits
from ..models_zoo.digits import cnn
from .common.data import of_classes
from .common.drawing import draw_curves
from .common.harness import Case, Report, Settings, Way, accuracy, evaluate, fit
from .common.models import seeded
from .common.rates import tuned
from .common.runs import Runs

__all__ = ["run"]

RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


def run(settings: Settings) -> Report:
    """A pretrained CNN gets a new last layer and learns the other half: with all layers, and with frozen convolutions."""
    train, test = digits()
    first = [_classes(part, range(5)) for part in (train, test)]
    second = [_classes(part, range(5, 10)) for part in (train, test)]
    start = seeded(lambda: _with_head(cnn()))

    @functools.cache
    def trained(seed: int) -> nn.Module:
        """The model that has learnt the first half."""
        found: list[nn.Module] = []

        def keep(seed: int, model: nn.Module) -> dict[str, Any]:
            found.append(copy.deepcopy(model))
            return {}

        alone = replace(settings, seeds=1, first=seed, runs=Runs(device=settings.runs.device))
        before = Way("backprop", None, cross_entropy)
        fit(start(0), [before], first[0], first[1], alone, epochs=8, name="pretraining", after=keep, start=start)
        return found[0].cpu()

    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    cases, notes = list[Case](), list[str]()
    for name, frozen in (("all layers", 0), ("without the convolutions", 2)):

        def adapted(seed: int) -> nn.Module:
            torch.manual_seed(100 + seed)
            return _with_head(copy.deepcopy(trained(seed)))

        like = _with_head(cnn())
        for layer in [m for m in like.modules() if isinstance(m, nn.Conv2d)][:frozen]:
            layer.requires_grad_(False)
        found, chosen = tuned(like, ways, RATES, second[0], second[1], settings, epochs=8, name=name, start=adapted)
        cases += found
        notes += chosen
        if not frozen:
            cases += _kept(like, adapted, trained, found[: len(ways)], ways, first[1], second, settings)
    return Report("transfer", "accuracy", cases, draw_curves, (12, 4), notes)


def _kept(
    like: nn.Module, adapted: Callable[[int], nn.Module], trained: Callable[[int], nn.Module], tuned_cases: list[Case],
    ways: list[Way], first: Arrays, second: list[Arrays], settings: Settings,
) -> list[Case]:  # fmt: skip
    """What is left of the first half: accuracy on it after the second, with the last layer that it had, which did not move on."""

    def ask(seed: int, model: nn.Module) -> dict[str, Any]:
        before, after = copy.deepcopy(trained(seed)), {name: x.cpu() for name, x in model.state_dict().items()}
        head = {name for name, _ in list(before.named_parameters())[-2:]}
        before.load_state_dict(
            {name: old if name in head else after[name] for name, old in before.state_dict().items()}
        )
        return {"kept": evaluate(before, first, accuracy)}

    at_best = [replace(way, lr=case.more["lr"]) for way, case in zip(ways, tuned_cases)]
    how: dict[str, Any] = {"epochs": 8, "name": "first half", "start": adapted, "after": ask}
    return [
        Case("first half afterwards", case.way, case.more["kept"], [[value] for value in case.more["kept"]])
        for case in fit(like, at_best, second[0], second[1], settings, **how)
    ]


def _classes(data: Arrays, kept: range) -> Arrays:
    x, y = of_classes(data, kept)
    return x, y - kept.start


def _with_head(model: nn.Module) -> nn.Module:
    """The model with a fresh last layer, for five classes."""
    *_, (name, last) = [(n, m) for n, m in model.named_children() if isinstance(m, nn.Linear)]
    setattr(model, name, nn.Linear(last.in_features, 5))
    return model
