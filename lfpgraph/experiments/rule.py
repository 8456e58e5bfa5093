"""Which floor and which slope of activations `lfp` has: chosen on parts of the training sets, never on held-out data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch.nn.functional import cross_entropy

from ..composites.composite import Composite, get_composite
from ..composites.learning import learning_structure
from ..demo.data import digits
from ..models_zoo.digits import cnn, vit
from .common.data import flat_digits
from .common.drawing import bars
from .common.harness import Report, Settings, Way
from .common.models import mlp, seeded
from .common.rates import chosen_rates
from .transformers.language import characters, gpt2, loss_of

__all__ = ["run"]

RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)


def _sides() -> dict[str, str | Composite | None]:
    """`lfp` with each floor and slope, the published rule, and backprop."""
    plain = get_composite("lfp")
    ratio = replace(plain, structure=partial(learning_structure, secant=0.0))
    found: dict[str, str | Composite | None] = {}
    for floor in ("0 rms", "0.1 rms", "0.3 rms", "1 rms"):
        found[f"floor {floor}, f(x) / x"] = ratio.with_options(floor=floor)
        found[f"floor {floor}, secant"] = plain.with_options(floor=floor)
    found["floor 0.1 rms, secant, in units of the parameter"] = plain.with_options(unit="parameter")
    return {**found, "lfp-epsilon": "lfp-epsilon", "backprop": None}


def run(settings: Settings) -> Report:
    """The digits' MLP, CNN and ViT (share of errors) and the language model (nats per character), each side at its best rate."""
    (text, _, size), images, flat = characters(), digits()[0], flat_digits()[0]
    tasks: dict[str, tuple[Any, Any, int]] = {
        "MLP": (lambda: mlp([64, 128, 64, 10]), flat, 20),
        "CNN": (cnn, images, 15),
        "ViT": (vit, images, 20),
        "GPT-2": (lambda: gpt2(size), text, 4),
    }
    cases, notes = [], []
    for name, (build, data, epochs) in tasks.items():
        of_text = name == "GPT-2"
        ways = [Way(side, composite, loss_of if of_text else cross_entropy) for side, composite in _sides().items()]
        start = seeded(build)
        score = (lambda o, y: loss_of(o, y).item()) if of_text else _error
        found = chosen_rates(
            start(0),
            ways,
            RATES,
            data,
            settings,
            name=name,
            epochs=epochs,
            start=start,
            score=score,
            lower_is_better=True,
        )
        cases += found
        notes += [f"{name}, {case.way}: rate {case.more['lr']:g}" for case in found]
    return Report("rule", "loss or error", cases, _draw, (11, 14), notes)


def _error(outputs: Any, labels: Any) -> float:
    return (outputs.argmax(-1) != labels).float().mean().item()


def _draw(figure: Any, report: Report) -> None:
    models = list(dict.fromkeys(case.model for case in report.cases))
    for axes, model in zip(figure.subplots(len(models), 1), models):
        bars(axes, [case for case in report.cases if case.model == model], report.metric)
