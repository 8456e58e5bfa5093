"""What is done to each parameter's `.grad` alone: scaled, normalised, clipped, or left out of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...errors import PolicyError, check_choice
from .base import Pairs, Policy, checked

__all__ = ["AdaptiveClip", "NormalizeByMax", "SmallestWeights", "TopK", "WeightScaled", "kth"]


class WeightScaled(Policy):
    """`g * max(abs(w), floor)`: LFP's update (eq. 6) of a plain gradient or signal.

    A composite with `scale="weight"` does this already; use it with `scale="signal"`, or to scale backprop.

    Args:
        floor: in units of the parameter; with 0 a weight of zero does not move.
    """

    def __init__(self, floor: float = 0.0, **names: Any) -> None:
        super().__init__(**names)
        self.floor = checked("floor", floor, 0.0, float("inf"))

    def apply(self, parameters: Pairs) -> None:
        for _, p in parameters:
            _grad(p).mul_(p.abs().clamp_min(self.floor))


class NormalizeByMax(Policy):
    """`g / max(abs(g))`: every layer's feedback gets a largest entry of one (lfprop's `norm_backward`).

    A layer's feedback is proportional to its signal, so this normalises the signal by layer.

    Args:
        by: "layer" divides the parameters of a module by their common maximum, "tensor" each by its own.
    """

    def __init__(self, by: str = "layer", **names: Any) -> None:
        super().__init__(**names)
        check_choice("by", by, ("layer", "tensor"), PolicyError)
        self.by = by

    def apply(self, parameters: Pairs) -> None:
        groups: dict[str, list[Tensor]] = {}
        for name, p in parameters:
            groups.setdefault(name.rpartition(".")[0] if self.by == "layer" else name, []).append(_grad(p))
        for grads in groups.values():
            largest = torch.stack([g.abs().max() for g in grads if g.numel()] or [torch.zeros(())]).max()
            for g in grads:
                g.div_(torch.where(largest > 0, largest, 1.0).to(g.device))


class AdaptiveClip(Policy):
    """Adaptive gradient clipping: a unit's gradient is at most `clip` times the norm of its weights.

    `g_i * clip * max(norm(w_i), eps) / norm(g_i)` where `norm(g_i)` is larger than `clip * max(norm(w_i), eps)`. A unit is
    a row of a matrix or an output channel [o, ...]; a vector is one unit by entry, as biases and gains are.
    Source: Brock et al. 2021 (arXiv 2102.06171), eq. 3; there the last layer is left out: `exclude="classifier.*"`.

    Args:
        clip: lambda; 0.01 to 0.16 there. eps: stands for the norm of units that are zero.
    """

    def __init__(self, clip: float = 0.01, eps: float = 1e-3, **names: Any) -> None:
        super().__init__(**names)
        self.clip = checked("clip", clip, 0.0, float("inf"))
        self.eps = checked("eps", eps, 0.0, float("inf"))

    def apply(self, parameters: Pairs) -> None:
        for _, p in parameters:
            g = _grad(p)
            size = _unit_norm(g)
            most = self.clip * _unit_norm(p).clamp_min(self.eps)
            g.mul_(torch.where(size > most, most / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0))


def _unit_norm(x: Tensor) -> Tensor:
    """The norm of each row or output channel, [o, 1, ...]; of a vector or scalar its entries' sizes."""
    return x.abs() if x.dim() < 2 else torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


class TopK(Policy):
    """Only the share of entries with the largest feedback is kept, chosen anew at every step; the rest of `.grad` is zero.

    An optimizer with momentum or weight decay still moves entries that have it from before.

    Args:
        share: of the entries, above 0 to 1. scope: "tensor" chooses in each parameter, "all" among all of them together.
    """

    def __init__(self, share: float = 0.1, scope: str = "tensor", **names: Any) -> None:
        super().__init__(**names)
        self.share = checked("share", share, 0.0, 1.0)
        check_choice("scope", scope, ("tensor", "all"), PolicyError)
        self.scope = scope

    def apply(self, parameters: Pairs) -> None:
        grads = [_grad(p) for _, p in parameters]
        for group in [[g] for g in grads] if self.scope == "tensor" else [grads] * bool(grads):
            sizes = torch.cat([g.abs().flatten() for g in group])
            least = kth(sizes, self.share, largest=True)
            for g in group:
                g.mul_(g.abs() >= least)


class SmallestWeights(Policy):
    """Only the weights that are smallest at the first step are trained, the same ones to the end (SaRA).

    The mask is remembered in the optimizer's `state_dict`. Use an optimizer without weight decay, which moves all weights.
    Source: SaRA (Hu et al. 2024, arXiv 2409.06633), where the smallest 10 to 20 % of pretrained weights are trained.

    Args:
        share: of each parameter's entries, above 0 to 1.
    """

    def __init__(self, share: float = 0.1, **names: Any) -> None:
        super().__init__(**names)
        self.share = checked("share", share, 0.0, 1.0)
        self.masks: dict[str, Tensor] = {}

    def start(self, parameters: Pairs, optimizer: Optimizer) -> None:
        self.masks = {}

    def apply(self, parameters: Pairs) -> None:
        for name, p in parameters:
            if name not in self.masks:
                self.masks[name] = p.abs() <= kth(p.abs().flatten(), self.share, largest=False)
            _grad(p).mul_(self.masks[name].to(p.device))

    def state_dict(self) -> dict[str, Any]:
        return dict(self.masks)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = dict(state)


def kth(sizes: Tensor, share: float, largest: bool) -> Tensor:
    """The size that bounds a share of the entries, one at least."""
    count = max(1, round(share * sizes.numel()))
    if sizes.numel() == 0:
        return sizes.new_zeros(())
    return sizes.topk(count, largest=largest).values[-1]


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad
