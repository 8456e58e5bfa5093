"""The models of the lfprop golden file, in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["BATCH", "CLASSES", "MODELS", "Step"]

BATCH, CLASSES = 6, 5


class Step(nn.Module):
    """Heaviside step, as lfprop writes it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.sign(x), x * 0)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "step": Step,
    "tanh": nn.Tanh,
}


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    """20-16-12-5 with ReLU."""
    layers = [nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, CLASSES)]
    return nn.Sequential(*layers), (20,)


def lenet() -> tuple[nn.Module, tuple[int, ...]]:
    """LeNet-5's shape on 20 x 20 images."""
    features = [
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    head = [nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, CLASSES)]
    return nn.Sequential(*features, *head), (1, 20, 20)


def cnn(activation: str, norm: bool, average: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """Three convolutions and two linear layers on 3 x 12 x 12 images."""
    act, pool = ACTIVATIONS[activation], nn.AvgPool2d if average else nn.MaxPool2d
    layers: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate([(3, 6), (6, 8), (8, 8)]):
        layers.append(nn.Conv2d(c_in, c_out, 3, padding=1))
        layers += [nn.BatchNorm2d(c_out)] if norm else []
        layers.append(act())
        layers += [pool(2)] if i < 2 else []
    layers += [nn.Flatten(), nn.Linear(72, 16), act(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*layers), (3, 12, 12)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {"mlp": mlp, "lenet": lenet}
for _name in ACTIVATIONS:
    for _norm in (False, True):
        for _average in (False, True):
            _key = f"cnn-{_name}{'-bn' if _norm else ''}-{'avg' if _average else 'max'}"
            MODELS[_key] = lambda a=_name, n=_norm, p=_average: cnn(a, n, p)  # type: ignore[misc]
