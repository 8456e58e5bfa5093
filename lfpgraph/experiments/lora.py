"""LoRA: a ViT that knows the digits 0 to 4 learns 5 to 9 by adapters alone, with a head that is trained too or frozen."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..demo.data import digits
from ..models_zoo.digits import vit
from ..optional import need
from .common.data import of_classes
from .common.drawing import draw_curves
from .common.harness import Case, Report, Settings, Way, fit
from .common.models import seeded
from .common.rates import tuned

__all__ = ["run"]

RATES = (3e-3, 1e-2, 3e-2)


def run(settings: Settings) -> Report:
    """PEFT's LoRA of rank 4 in all linear layers. The frozen head has never been told of the classes it is to give now."""
    train, test = digits()
    first = [of_classes(part, range(5)) for part in (train, test)]
    second = [of_classes(part, range(5, 10)) for part in (train, test)]
    trained: dict[int, nn.Module] = {}

    def keep(case: Case, seed: int, model: nn.Module) -> None:
        trained[seed] = copy.deepcopy(model)

    before = Way("backprop", None, cross_entropy, lr=1e-3)
    start = seeded(vit)
    fit(start(0), [before], first[0], first[1], settings, epochs=15, name="pretraining", after=keep, start=start)
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    cases, notes = list[Case](), list[str]()
    for name, frozen in (("head trained", False), ("head frozen", True)):

        def adapted(seed: int, frozen: bool = frozen) -> nn.Module:
            torch.manual_seed(100 + seed)
            return _with_adapters(copy.deepcopy(trained[seed]), frozen)

        found, chosen = tuned(
            adapted(0), ways, RATES, second[0], second[1], settings, epochs=15, name=name, start=adapted
        )
        cases += found
        notes += chosen
    return Report("lora", "accuracy", cases, draw_curves, (12, 4), notes)


def _with_adapters(model: nn.Module, frozen: bool) -> nn.Module:
    peft = need("peft", "clients", "the experiment lora")
    config = peft.LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=["classifier"] if frozen else None,
        modules_to_save=None if frozen else ["classifier"],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # of transformers, when PEFT asks
        adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted
