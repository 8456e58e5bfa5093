"""Captions of pictures: a CNN and an LSTM (Vinyals et al. 2015) describe digits in four words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...demo.data import Arrays, digits
from ...models_zoo.forecasting import Captioner
from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned

__all__ = ["WORDS", "described", "run"]

RATES = (1e-2, 3e-2)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = ("bold", "thin", "wide", "narrow", "even", "odd", *NAMES)


def described() -> tuple[Arrays, Arrays]:
    """Pixels with the caption behind them, [n, 64 + 4], and the caption, [n, 4]: "bold narrow odd seven"."""
    parts = digits()
    ink = torch.cat([x.flatten(1).sum(1) for x, _ in parts]).median()

    def words(x: Tensor, y: Tensor) -> Arrays:
        pixels = x.flatten(1)
        seen = (x.reshape(-1, 8, 8) > x.amax() / 4).any(1)
        wide = seen.sum(1) > 5
        caption = torch.stack([(pixels.sum(1) <= ink).long(), 2 + (~wide).long(), 4 + y % 2, 6 + y], 1)
        return torch.cat([pixels, caption.to(pixels)], 1), caption

    train, test = (words(x, y) for x, y in parts)
    return train, test


def _loss(outputs: Tensor, captions: Tensor) -> Tensor:
    return cross_entropy(outputs.flatten(0, 1), captions.flatten())


def _right(outputs: Tensor, captions: Tensor) -> float:
    """The share of captions of which every word is right, each word said after the model's own words before."""
    return (outputs.argmax(-1) == captions).all(1).float().mean().item()


def run(settings: Settings) -> Report:
    """The share of held-out digits whose four words are all right."""
    train, test = described()
    ways = [Way("LFP", "lfp", _loss), Way("backprop", None, _loss)]
    start = seeded(lambda: Captioner(8, 4, len(WORDS), 48, 8))
    cases, notes = tuned(
        start(0), ways, RATES, train, test, settings, epochs=20, name="captions", start=start, score=_right, choosing=1
    )
    return Report("captions", "accuracy", cases, draw_curves, notes=notes)
