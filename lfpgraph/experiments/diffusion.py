"""A diffusion model on digits: it is given images with noise of a known level, and predicts the noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu

from ..demo.data import Arrays
from .common.data import flat_digits
from .common.drawing import draw_curves
from .common.harness import Report, Settings, Way
from .common.models import seeded
from .common.rates import tuned

__all__ = ["Block", "Denoiser", "noisy", "run"]

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DRAWS = 4


class Block(nn.Module):
    """What a residual block adds, at a level of noise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.level = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        found: Tensor = self.down(silu(self.up(self.norm(x)) + self.level(level)))
        return found


class Denoiser(nn.Module):
    """Residual blocks; takes images and the level of noise, [..., 64 + 1], and returns what it takes for noise, [..., 64]."""

    def __init__(self, width: int = 128, blocks: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 64)
        self.levels, self.norm = nn.Linear(16, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x, level = x[..., :64], x[..., 64:]
        waves = level * torch.pi * torch.arange(1, 9, dtype=x.dtype, device=x.device)
        level = silu(self.levels(torch.cat([waves.sin(), waves.cos()], -1)))
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x, level)
        found: Tensor = self.last(self.norm(x))
        return found


def noisy(images: Tensor, seed: int) -> Arrays:
    """`cos(t) x + sin(t) noise` with t a share of a right angle, [n, draws, 65] with that share last, and the noise."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(images), DRAWS, 1, generator=generator)
    noise = torch.randn(len(images), DRAWS, 64, generator=generator)
    angle = share * torch.pi / 2
    return torch.cat([angle.cos() * images[:, None] + angle.sin() * noise, share], -1), noise


def run(settings: Settings) -> Report:
    """Mean squared error of the noise, which has variance 1, on held-out images; four levels for each, the same in each epoch."""
    train, test = (noisy(x, seed) for seed, (x, _) in enumerate(flat_digits()))
    ways = [Way("LFP", "lfp", mse_loss), Way("backprop", None, mse_loss)]
    start = seeded(Denoiser)
    cases, notes = tuned(
        start(0), ways, RATES, train, test, settings, epochs=10, name="noise", batch_size=16, start=start,
        score=lambda o, y: mse_loss(o, y).item(), lower_is_better=True,
    )  # fmt: skip
    return Report("diffusion", "mean squared error", cases, draw_curves, notes=notes)
