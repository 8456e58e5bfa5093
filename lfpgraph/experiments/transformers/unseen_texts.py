"""Language models that no rule, rate or option of `lfp` was chosen on: LSTMs, and Mamba."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ..common.drawing import draw_curves
from ..common.harness import Case, Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned
from .language import RATES, characters, loss_of

__all__ = ["LstmLanguage", "mamba", "run"]


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


def mamba(size: int) -> nn.Module:
    """transformers' Mamba from its configuration."""
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=size, hidden_size=48, state_size=4, num_hidden_layers=2, use_cache=False, pad_token_id=0)
    )


def run(settings: Settings) -> Report:
    """The characters of `language`, 4 epochs, each side at its best rate, all else as `wrap` has it by default."""
    train, test, size = characters()
    ways = [Way("LFP", "lfp", loss_of), Way("backprop", None, loss_of)]
    builds: dict[str, Callable[[], nn.Module]] = {"LSTM": partial(LstmLanguage, size), "Mamba": partial(mamba, size)}

    def one(name: str) -> tuple[list[Case], list[str]]:
        start = seeded(builds[name])
        return tuned(
            start(0), ways, RATES, train, test, settings, choosing=2, epochs=4, name=name, start=start,
            score=lambda o, y: loss_of(o, y).item(), lower_is_better=True,
        )  # fmt: skip

    found = settings.runs.together([partial(one, name) for name in builds])
    cases = [case for own, _ in found for case in own]
    return Report(
        "unseen_texts", "nats per character", cases, draw_curves, (10, 4), [note for _, own in found for note in own]
    )
