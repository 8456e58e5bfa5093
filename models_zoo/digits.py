"""Models for 8 x 8 x 1 images of ten digits."""

from __future__ import annotations

from torch import nn

from .torch_models import Step

__all__ = ["cnn", "step_cnn", "vit"]


def _cnn(activation: type[nn.Module]) -> nn.Module:
    features = [
        nn.Conv2d(1, 32, 3, padding=1),
        activation(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        activation(),
    ]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(1024, 128), activation(), nn.Linear(128, 10))


def cnn() -> nn.Module:
    """Two convolutions and two linear layers with ReLU."""
    return _cnn(nn.ReLU)


def step_cnn() -> nn.Module:
    """The same network with Heaviside steps, whose gradient is zero everywhere."""
    return _cnn(Step)


def vit() -> nn.Module:
    """transformers' own ViT classifier: 4 layers, width 64, patches of 2 x 2, random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
    )
    return ViTForImageClassification(config)
