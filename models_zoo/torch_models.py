"""Models in plain torch: MLP, LeNet, VGG-like, ResNet-18, LSTM classifier, CNN with step activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LSTMClassifier", "ResNet18", "Step", "lenet", "mlp", "step_cnn", "vgg"]


class Step(nn.Module):
    """Heaviside step: 1 above zero, else 0. Its gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual, ReLU in place, as torchvision writes it."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016); images [n, 3, h, w] to [n, classes]."""

    def __init__(self, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for i in range(4):
            blocks += [
                _Block(widths[i], widths[i + 1], 1 if i == 0 else 2),
                _Block(widths[i + 1], widths[i + 1], 1),
            ]
        self.layers = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class LSTMClassifier(nn.Module):
    """Sequences [n, t, inputs] to [n, classes], by the last state of a two-layer LSTM."""

    def __init__(self, inputs: int = 4, hidden: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def mlp(inputs: int = 20, hidden: int = 16, classes: int = 5) -> nn.Module:
    """Two hidden layers with ReLU and dropout."""
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


def lenet(classes: int = 10) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU; images [n, 1, 28, 28]."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)]
    features += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(
        *features, nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
    )


def vgg(norm: bool = True, width: int = 8, classes: int = 5) -> nn.Module:
    """A VGG-like CNN; images [n, 3, 16, 16]."""
    layers: list[nn.Module] = []
    channels = 3
    for out in (width, width, 0, 2 * width, 2 * width, 0):
        if out == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, out, 3, padding=1)] + ([nn.BatchNorm2d(out)] if norm else []) + [nn.ReLU(True)]
        channels = out
    head = [nn.Flatten(), nn.Linear(32 * width, 32), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(32, classes)]
    return nn.Sequential(*layers, *head)


def step_cnn(classes: int = 10, width: int = 8) -> nn.Module:
    """A CNN with step activations; images [n, 1, 8, 8]."""
    features = [
        nn.Conv2d(1, width, 3, padding=1),
        Step(),
        nn.Conv2d(width, width, 3, padding=1),
        Step(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(16 * width, 32), Step(), nn.Linear(32, classes))
