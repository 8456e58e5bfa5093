"""How good the rate is that `suggest_lr` suggests: beside the best of a grid, on parts of the training sets alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from ..comparison.examples import held_back
from ..demo.data import Arrays, digits
from ..models_zoo.digits import cnn, vit
from ..training import suggest_lr
from .common.data import flat_digits
from .common.drawing import bars
from .common.harness import Case, Report, Settings, Way, fit
from .common.models import mlp, seeded
from .transformers.language import characters, gpt2, loss_of

__all__ = ["run"]

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def run(settings: Settings) -> Report:
    """Loss on the validation part at the rate suggested, and at each rate of the grid, for four models and both ways."""
    text, _, size = characters()
    tasks: dict[str, tuple[Callable[[], nn.Module], Arrays, Any, int]] = {
        "MLP": (lambda: mlp([64, 128, 64, 10]), flat_digits()[0], cross_entropy, 20),
        "CNN": (cnn, digits()[0], cross_entropy, 15),
        "ViT": (vit, digits()[0], cross_entropy, 20),
        "GPT-2": (lambda: gpt2(size), text, loss_of, 4),
    }

    def one(name: str, side: str, composite: str | None) -> list[Case]:
        build, data, loss, epochs = tasks[name]
        start, (train, validation) = seeded(build), held_back(data)
        how: dict[str, Any] = {"loss": loss, "composite": composite, "batch_size": 64, "device": settings.runs.device}
        key = {"experiment": settings.experiment, "model": name, "way": side, "samples": len(train[0])}
        rate = settings.runs.make(key, lambda: {"lr": suggest_lr(start(0), train, **how)})["lr"]
        ways = [Way(side, composite, loss, lr=lr) for lr in (rate, *RATES)]
        score = lambda o, y: loss(o, y).item()  # noqa: E731
        found = fit(start(0), ways, train, validation, settings, epochs=epochs, name=name, start=start, score=score)
        chosen, best = min(zip(RATES, found[1:]), key=lambda pair: pair[1].mean)
        found[0].more, best.more = {"lr": rate}, {"lr": chosen}
        found[0].model, best.model = f"{name}, suggested", f"{name}, best of the grid"
        return [found[0], best]

    sides = {"LFP": "lfp", "backprop": None}
    tried = settings.runs.together([partial(one, name, *side) for name in tasks for side in sides.items()])
    cases = sorted(
        (case for own in tried for case in own), key=lambda case: list(tasks).index(case.model.split(",")[0])
    )
    notes = [f"{case.model}, {case.way}: rate {case.more['lr']:g}" for case in cases]
    return Report("suggested", "loss", cases, lambda f, r: bars(f.subplots(), r.cases, r.metric), (12, 4), notes)
