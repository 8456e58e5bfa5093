"""A network of blocks that are alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Block", "Deep"]


class Block(nn.Module):
    """A residual block, scaled by a number of its own."""

    def __init__(self, size: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(size), nn.Linear(size, 16), nn.Linear(16, size)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.scale * self.narrow(torch.tanh(self.wide(self.norm(x))))
        return out


class Deep(nn.Module):
    """A parameter of its own, blocks in a list, a head."""

    def __init__(self, depth: int = 4, scales: tuple[float, ...] = (), checkpointed: bool = False) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(8))
        self.embed = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(scale=scales[i] if scales else 1.0) for i in range(depth))
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 3)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.place
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        out: Tensor = self.head(self.drop(x))
        return out
