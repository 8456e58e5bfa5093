"""A language model of LSTMs, on which no rule or option of `lfp` was chosen."""

from __future__ import annotations

from torch import Tensor, nn

from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned
from .language import characters, loss_of

__all__ = ["LstmLanguage", "run"]

RATES = (1e-2, 2e-2, 4e-2, 8e-2, 0.16)


class LstmLanguage(nn.Module):
    """Two LSTMs over embedded characters."""

    def __init__(self, size: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, size)

    def forward(self, ids: Tensor) -> Tensor:
        """Characters [n, t] to logits [n, t, size]."""
        logits: Tensor = self.head(self.lstm(self.embedding(ids))[0])
        return logits


def run(settings: Settings) -> Report:
    """The characters of `language`, 4 epochs, each side at its best rate, all else as `wrap` has it by default."""
    train, test, size = characters()
    ways = [Way("LFP", "lfp", loss_of), Way("backprop", None, loss_of)]
    start = seeded(lambda: LstmLanguage(size))
    cases, notes = tuned(
        start(0), ways, RATES, train, test, settings, choosing=2, epochs=4, name="LSTM", start=start,
        score=lambda o, y: loss_of(o, y).item(), lower_is_better=True,
    )  # fmt: skip
    return Report("unseen_texts", "nats per character", cases, draw_curves, (6, 4), notes)
