"""Small models and batches on which learning rules are compared with their papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CLASSES", "batch", "net"]

CLASSES = 4


def net(convolutions: bool) -> nn.Sequential:
    torch.manual_seed(0)
    if not convolutions:
        return nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    layers = [nn.Conv2d(1, 3, 2, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)]
    return nn.Sequential(*layers).double()


def batch(step: int, convolutions: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 9, generator=generator, dtype=torch.float64)
    return x.reshape(8, 1, 3, 3) if convolutions else x, torch.randint(CLASSES, (8,), generator=generator)
