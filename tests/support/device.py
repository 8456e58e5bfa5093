"""The device of the GPU tests: a GPU where there is one; on the CPU the same tests can be tried out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["DEVICE", "moved", "on_device"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def moved(value: Any, device: str = DEVICE) -> Any:
    """The same with its tensors, and any device that it names, on another device."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device(device)
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(move, value)


def on_device(model: nn.Module, *batch: Any) -> tuple[Any, ...]:
    """The model, and what it is called with, on the device of the tests."""
    return (model.to(DEVICE), *moved(batch))
