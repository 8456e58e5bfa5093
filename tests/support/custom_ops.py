"""Operations that no rule knows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["opaque", "triple"]


@torch.library.custom_op("lfptest::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    """An operation without rule and without derivative."""
    return x * 2


@opaque.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lfptest::triple", mutates_args=())
def triple(x: Tensor) -> Tensor:
    """An operation without rule, with a derivative."""
    return x * 3


triple.register_fake(lambda x: torch.empty_like(x))
triple.register_autograd(lambda ctx, g: g * 3)
