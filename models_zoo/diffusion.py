"""Denoising networks of diffusion models: DiT, and the U-Net with attention of DDPM."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["DDPM", "DiT"]


def _embed_time(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of t [n] at `width` / 2 frequencies: [n, width]."""
    half = width // 2
    rates = torch.exp(-math.log(10_000.0) / half * torch.arange(half, device=t.device, dtype=t.dtype))
    angles = t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


class _DiTBlock(nn.Module):
    """Attention and MLP whose norms are shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self._attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Diffusion transformer (Peebles and Xie 2023), XL/2 by default: latents [n, 4, side, side], time [n], class [n]."""

    def __init__(
        self, side: int = 32, patch: int = 2, width: int = 1152, depth: int = 28, heads: int = 16, classes: int = 1000
    ) -> None:
        super().__init__()
        self.position: Tensor
        self.width, self.patch = width, patch
        self.stem = nn.Conv2d(4, width, patch, patch)
        self.register_buffer("position", torch.zeros(1, (side // patch) ** 2, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(_DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, patch * patch * 8)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        condition = self.time(_embed_time(t, 256)) + self.label(label)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.condition(condition)[:, None].chunk(2, -1)
        x = self.head(self.norm(x) * (1 + scale) + shift)
        p = self.patch
        x = x.view(n, h // p, w // p, p, p, 8).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(n, 8, h, w)


class _ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, time: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, c_out))
        self.conv2 = nn.Sequential(
            nn.GroupNorm(groups, c_out), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.skip(x) + self.conv2(self.conv1(x) + self.time(t)[:, :, None, None])


class _Attention(nn.Module):
    """Self-attention over the pixels, one head, written out."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), -1)
        return x + self.out((v @ weights.transpose(1, 2)).view_as(x))


class DDPM(nn.Module):
    """The U-Net of DDPM (Ho et al. 2020) for CIFAR-10 by default: images [n, 3, side, side], time [n]."""

    def __init__(
        self, side: int = 32, width: int = 128, factors: tuple[int, ...] = (1, 2, 2, 2), blocks: int = 2, at: int = 16
    ) -> None:
        super().__init__()
        time, groups = 4 * width, min(32, width // 4)
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, channels = [width], width
        for level, factor in enumerate(factors):
            for _ in range(blocks):
                self.down.append(self._level(channels, width * factor, time, groups, side == at))
                channels = width * factor
                kept.append(channels)
            if level + 1 < len(factors):
                self.down.append(nn.Conv2d(channels, channels, 3, 2, 1))
                kept.append(channels)
                side //= 2
        self.middle = nn.ModuleList(
            [self._level(channels, channels, time, groups, True), self._level(channels, channels, time, groups, False)]
        )
        for level, factor in reversed(list(enumerate(factors))):
            for _ in range(blocks + 1):
                self.up.append(self._level(channels + kept.pop(), width * factor, time, groups, side == at))
                channels = width * factor
            if level:
                layers = [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1)]
                self.up.append(nn.Sequential(*layers))
                side *= 2
        self.head = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1))

    @staticmethod
    def _level(c_in: int, c_out: int, time: int, groups: int, attend: bool) -> nn.ModuleList:
        attention = [_Attention(c_out, groups)] if attend else []
        return nn.ModuleList([_ResBlock(c_in, c_out, time, groups), *attention])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(_embed_time(t, self.width))
        x = self.stem(x)
        kept = [x]
        for layer in self.down:
            x = self._run(layer, x, t)
            kept.append(x)
        for layer in self.middle:
            x = self._run(layer, x, t)
        for layer in self.up:
            x = self._run(layer, torch.cat([x, kept.pop()], 1) if isinstance(layer, nn.ModuleList) else x, t)
        return self.head(x)

    @staticmethod
    def _run(layer: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(layer, nn.ModuleList):
            return layer(x)
        x = layer[0](x, t)
        return layer[1](x) if len(layer) > 1 else x
