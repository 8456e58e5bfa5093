"""Rewards for spikes over time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RewardError
from .checks import indices

__all__ = ["RateCodedSpikes"]


class RateCodedSpikes:
    """Rewards spikes of the label's neuron and punishes those of the others; less, the more steps are right already.

    `r = 1 - sigmoid(n_spikes - T // 2)` for the label's neuron at every step, spike or not, and
    `r = -o * (1 - sigmoid(n_silent - T // 2))` for the others, with n_spikes and n_silent counted over the T steps.
    Spikes [t, n, c], labels [n]. Source: lfprop 1.0.0, `SnnCorrectClassRewardSpikesRateCoded`; LFP, section on spiking.
    """

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        spikes = outputs.detach()
        if spikes.dim() != 3:
            raise RewardError(f"RateCodedSpikes needs spikes [t, n, c]; got {list(spikes.shape)}")
        steps, n, classes = spikes.shape
        labels = indices(labels, torch.Size([n]), classes).to(spikes.device)
        right = torch.nn.functional.one_hot(labels, classes).bool()
        to_right = 1 - torch.sigmoid(spikes.sum(0) - steps // 2)
        to_others = 1 - torch.sigmoid((spikes - 1).abs().sum(0) - steps // 2)
        return torch.where(right, to_right.expand_as(spikes), -spikes * to_others)

    @staticmethod
    def predictions(spikes: Tensor) -> Tensor:
        """The class that spikes most often. Spikes [t, n, c]; returns [n]."""
        return spikes.sum(0).argmax(-1)
