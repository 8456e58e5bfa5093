"""The models that the benchmarks step, each with a batch of random data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lfpgraph.models_zoo.torch_models import ResNet18
from torch import Tensor, nn

__all__ = ["MODELS"]

Case = tuple[nn.Module, tuple[Tensor, Tensor]]


def _images(n: int, c: int, size: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, c, size, size), torch.randint(classes, (n,))


def _mlp() -> Case:
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    return model, (torch.randn(256, 512), torch.randint(10, (256,)))


def _resnet18() -> Case:
    return ResNet18(), _images(8, 3, 128, 1000)


def _digits_cnn() -> Case:
    from lfpgraph.models_zoo.digits import cnn

    return cnn(), _images(64, 1, 8, 10)


def _digits_step_cnn() -> Case:
    from lfpgraph.models_zoo.digits import step_cnn

    return step_cnn(), _images(64, 1, 8, 10)


def _digits_vit() -> Case:
    from lfpgraph.models_zoo.digits import vit

    return vit(), _images(64, 1, 8, 10)


MODELS: dict[str, Callable[[], Case]] = {
    "mlp": _mlp,
    "resnet18": _resnet18,
    "digits-cnn": _digits_cnn,
    "digits-step-cnn": _digits_step_cnn,
    "digits-vit": _digits_vit,
}
