"""Convolutional networks in plain torch, as published: VGG-16, EfficientNetV2, U-Net, MLP-Mixer, autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VAE", "EfficientNetV2", "Mixer", "UNet", "autoencoder", "efficientnet_v2_m", "vgg16"]

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16(divide: int = 1, classes: int = 1000) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015); images [n, 3, h, w]. Widths divided by `divide`."""
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG16:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width // divide, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width // divide
    hidden = 4096 // divide
    head = [nn.Flatten(), nn.Linear(49 * channels, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, hidden)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(7), *head, nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, classes)
    )


def _conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=1e-3), *([nn.SiLU()] if act else []))


class _Excite(nn.Module):
    """Squeeze and excitation: each channel is scaled by a gate of all channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.reduce(x.mean((2, 3), keepdim=True))
        return x * torch.sigmoid(self.expand(nn.functional.silu(gate)))


class _MBConv(nn.Module):
    """Inverted bottleneck; `fused` widens with a 3x3 convolution in place of a 1x1 and a depthwise one."""

    def __init__(self, fused: bool, ratio: int, stride: int, c_in: int, c_out: int) -> None:
        super().__init__()
        wide = c_in * ratio
        if fused and ratio == 1:
            layers = [_conv_norm(c_in, c_out, 3, stride)]
        elif fused:
            layers = [_conv_norm(c_in, wide, 3, stride), _conv_norm(wide, c_out, 1, act=False)]
        else:
            squeeze = _Excite(wide, max(1, c_in // 4))
            layers = [_conv_norm(c_in, wide, 1), _conv_norm(wide, wide, 3, stride, wide)]
            layers += [nn.Sequential(squeeze), _conv_norm(wide, c_out, 1, act=False)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetV2(nn.Module):
    """EfficientNetV2 (Tan and Le 2021); images [n, 3, h, w]. A stage is (fused, ratio, stride, width, blocks)."""

    def __init__(self, stem: int, stages: list[tuple[bool, int, int, int, int]], last: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, stem, 3, 2)]
        channels = stem
        for fused, ratio, stride, width, blocks in stages:
            for i in range(blocks):
                layers.append(_MBConv(fused, ratio, stride if i == 0 else 1, channels, width))
                channels = width
        self.features = nn.Sequential(*layers, _conv_norm(channels, last, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


_V2_M = [
    (True, 1, 1, 24, 3),
    (True, 4, 2, 48, 5),
    (True, 4, 2, 80, 5),
    (False, 4, 2, 160, 7),
    (False, 6, 1, 176, 14),
    (False, 6, 2, 304, 18),
    (False, 6, 1, 512, 5),
]


def efficientnet_v2_m(size: str = "published") -> nn.Module:
    """EfficientNetV2-M, or its stages with one narrow block each."""
    if size == "published":
        return EfficientNetV2(24, _V2_M, 1280, 1000)
    return EfficientNetV2(8, [(f, r, s, w // 8 // 2 * 2 + 2, min(n, 2)) for f, r, s, w, n in _V2_M], 32, 5)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with padding and batch norm; images [n, 3, h, w] to [n, classes, h, w]."""

    def __init__(self, width: int = 64, levels: int = 5, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels)]
        pairs = list(zip([3, *widths], widths))
        self.down = nn.ModuleList(self._block(*pair) for pair in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in zip(widths, widths[1:]))
        self.merge = nn.ModuleList(self._block(b, a) for a, b in zip(widths, widths[1:]))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _block(c_in: int, c_out: int) -> nn.Module:
        layers: list[nn.Module] = []
        for channels in (c_in, c_out):
            layers += [nn.Conv2d(channels, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge)):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int, token_mlp: int, channel_mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, token_mlp), nn.GELU(), nn.Linear(token_mlp, tokens))
        self.channels = nn.Sequential(nn.Linear(width, channel_mlp), nn.GELU(), nn.Linear(channel_mlp, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021), B/16 by default; images [n, 3, image, image]."""

    def __init__(
        self, image: int = 224, patch: int = 16, width: int = 768, depth: int = 12, classes: int = 1000
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, patch, patch)
        tokens = (image // patch) ** 2
        self.blocks = nn.Sequential(*(_MixerBlock(tokens, width, width // 2, 4 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


def autoencoder(width: int = 32, code: int = 64) -> nn.Module:
    """Two strided convolutions to a code and two transposed ones back; images [n, 3, 32, 32]."""
    encoder = [nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU(), nn.Flatten()]
    decoder = [nn.Linear(code, 128 * width), nn.ReLU(), nn.Unflatten(1, (2 * width, 8, 8))]
    decoder += [nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1)]
    return nn.Sequential(*encoder, nn.Linear(128 * width, code), *decoder, nn.Sigmoid())


class VAE(nn.Module):
    """Variational autoencoder (Kingma and Welling 2014); [n, inputs] to (reconstruction, mean, log variance)."""

    def __init__(self, inputs: int = 784, hidden: int = 400, code: int = 20) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, code), nn.Linear(hidden, code)
        self.decoder = nn.Sequential(nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, inputs), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance
