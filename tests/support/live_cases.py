"""The register of models that the live engine is tried on: a name for each, and what makes it and the loss of one step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "Case", "case", "data"]

Case = tuple[nn.Module, Callable[[nn.Module], Tensor]]
MODELS: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a model under its function's name."""
    MODELS[make.__name__.strip("_")] = make
    return make


def data(*shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)
