"""Images by models that no rule, rate or option of `lfp` was chosen on: an MLP-Mixer, and a GRU over rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...demo.data import digits
from ..common.drawing import draw_curves
from ..common.harness import Case, Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned

__all__ = ["Mixer", "Rows", "run"]

RATES = (1e-3, 3e-3, 1e-2, 3e-2)


class Mixer(nn.Module):
    """An MLP-Mixer (Tolstikhin et al. 2021): patches of 2 x 2, GELU, layer norms; patches and channels are mixed in turn."""

    def __init__(self, width: int = 48, layers: int = 3, patches: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        sizes = (patches, width) * layers
        self.mixing = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)) for size in sizes
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 1, 8, 8] to logits [n, classes]."""
        x = self.stem(x).flatten(2).mT
        for i, (norm, mixing) in enumerate(zip(self.norms, self.mixing)):
            x = x + (mixing(norm(x)) if i % 2 else mixing(norm(x).mT).mT)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class Rows(nn.Module):
    """A GRU that reads an image row by row."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, width, batch_first=True), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 1, 8, 8] to logits [n, classes]."""
        logits: Tensor = self.head(self.gru(x[:, 0])[0][:, -1])
        return logits


def run(settings: Settings) -> Report:
    """Each side at its best rate, all else as `wrap` has it by default."""
    train, test = digits()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    builds: dict[str, Callable[[], nn.Module]] = {"MLP-Mixer": Mixer, "GRU over rows": Rows}

    def one(name: str) -> tuple[list[Case], list[str]]:
        start = seeded(builds[name])
        return tuned(start(0), ways, RATES, train, test, settings, epochs=15, name=name, start=start)

    found = settings.runs.together([partial(one, name) for name in builds])
    cases = [case for own, _ in found for case in own]
    return Report("unseen_images", "accuracy", cases, draw_curves, (10, 4), [note for _, own in found for note in own])
