"""Vision and space in plain torch: convolution and attention with a searchable pyramid, and a field of three planes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SearchedHybrid", "TriPlane"]


class _Convolved(nn.Module):
    """A residual bottleneck of convolutions ("ResConv")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class _Attended(nn.Module):
    """A residual bottleneck of attention ("ResAtt"), which knows of places by a depthwise convolution."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        inner = channels // 2
        self.heads = heads
        self.into, self.qkv, self.out = (
            nn.Conv2d(channels, inner, 1),
            nn.Conv2d(inner, 3 * inner, 1),
            nn.Conv2d(inner, channels, 1),
        )
        self.place = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.into(x)))
        y = y + self.place(y)
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)).mT for part in self.qkv(y).chunk(3, 1))
        mixed = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).unflatten(2, x.shape[2:])
        return torch.relu(x + self.norms[1](self.out(mixed)))


class SearchedHybrid(nn.Module):
    """The hybrid space of BossNAS (Li et al. 2021, HyTra): in each layer convolution or attention, at full or at half size.

    Every layer mixes its four candidates by `softmax(choices)`, so that which of them, and where the picture becomes smaller,
    is learned with all else (the paper trains them in turns, by sampled paths). At half size, a candidate pools before and
    repeats after; the stem is at 1 / stride. Images [n, colours, side, side] to logits [n, classes].
    """

    def __init__(
        self,
        colours: int = 3,
        channels: int = 128,
        layers: int = 8,
        heads: int = 4,
        classes: int = 1000,
        stride: int = 4,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(colours, channels, 2 * stride + 1, stride, stride), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.convolved = nn.ModuleList(_Convolved(channels) for _ in range(layers))
        self.attended = nn.ModuleList(_Attended(channels, heads) for _ in range(layers))
        self.choices = nn.Parameter(torch.randn(layers, 4) * 0.1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for convolved, attended, choice in zip(self.convolved, self.attended, self.choices.softmax(1)):
            small = F.avg_pool2d(x, 2)
            whole = choice[0] * convolved(x) + choice[1] * attended(x)
            half = choice[2] * convolved(small) + choice[3] * attended(small)
            x = whole + half.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.head(x.mean((2, 3)))


class TriPlane(nn.Module):
    """A field kept as three planes of features (Chan et al. 2022, EG3D): points [n, 3] in [-1, 1] to values [n, outputs]."""

    def __init__(self, features: int = 32, resolution: int = 256, width: int = 64, outputs: int = 4) -> None:
        super().__init__()
        self.planes = nn.Parameter(torch.randn(3, features, resolution, resolution) * 0.1)
        self.decoder = nn.Sequential(nn.Linear(features, width), nn.Softplus(), nn.Linear(width, outputs))

    def forward(self, points: Tensor) -> Tensor:
        sides = torch.stack([points[:, [0, 1]], points[:, [0, 2]], points[:, [1, 2]]])
        found = F.grid_sample(self.planes, sides[:, None], align_corners=True)  # [3, features, 1, n]
        return self.decoder(found.sum(0)[:, 0].mT)
