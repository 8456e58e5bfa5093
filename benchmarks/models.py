"""The models that the benchmarks step, each with a batch of random data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "ResNet18"]

Case = tuple[nn.Module, tuple[Tensor, Tensor]]


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual, ReLU in place, as torchvision writes it."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016), images [n, 3, h, w]."""

    def __init__(self, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for i in range(4):
            blocks += [_Block(widths[i], widths[i + 1], 1 if i == 0 else 2), _Block(widths[i + 1], widths[i + 1], 1)]
        self.layers = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


def _images(n: int, c: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, c, size, size), torch.randint(classes, (n,))


def _mlp() -> Case:
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    return model, (torch.randn(256, 512), torch.randint(10, (256,)))


def _resnet18() -> Case:
    return ResNet18(), _images(8, 3, 128, 1000)


def _digits_cnn() -> Case:
    from lfpgraph.models_zoo.digits import cnn

    return cnn(), _images(32, 1, 8, 10)


def _digits_step_cnn() -> Case:
    from lfpgraph.models_zoo.digits import step_cnn

    return step_cnn(), _images(32, 1, 8, 10)


def _digits_vit() -> Case:
    from lfpgraph.models_zoo.digits import vit

    return vit(), _images(32, 1, 8, 10)


MODELS: dict[str, Callable[[], Case]] = {
    "mlp": _mlp,
    "resnet18": _resnet18,
    "digits-cnn": _digits_cnn,
    "digits-step-cnn": _digits_step_cnn,
    "digits-vit": _digits_vit,
}
