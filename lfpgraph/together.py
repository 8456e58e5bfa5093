"""The scaling of many parameters' signals together, as operations of their own beside those of `kernels`.

A small tensor is scaled in less time than it takes to start that. What is started once for all of them is started once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels import DECOMPOSITIONS, KERNELS, define, scale_by_floored_size
from .native.gpu import scaled_by_floored

__all__ = ["SCALE_ALL", "SCALE_NORMED"]


def _scale_all(signals: list[Tensor], weights: list[Tensor]) -> Any:
    """`s * abs(w)` of each pair, written over s."""
    torch._foreach_mul_(signals, torch._foreach_abs(weights))


def _scale_normed(s: Tensor, w: Tensor, norm: Tensor, share: float, unit: float) -> Tensor:
    """`scale_by_floored_size_` of a w on a GPU whose norm is known."""
    made = scaled_by_floored(s, w, share, unit, norm)
    return KERNELS[torch.ops.lfpgraph.scale_by_floored_size_.default](s, w, share, unit) if made is None else made


SCALE_ALL = define("scale_all_(Tensor(a!)[] s, Tensor[] w) -> ()", _scale_all, lambda s, w: None)
SCALE_NORMED = define(
    "scale_normed(Tensor s, Tensor w, Tensor norm, float share, float unit) -> Tensor",
    _scale_normed,
    lambda s, *_: torch.empty_like(s),
)
DECOMPOSITIONS[SCALE_NORMED] = lambda s, w, norm, share, unit: scale_by_floored_size(s, w, share, unit)
