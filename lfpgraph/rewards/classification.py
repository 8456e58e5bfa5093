"""Rewards of lfprop for classes, single outputs and spikes. Source of each formula: lfprop 1.0.0, `rewards.reward_functions`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RewardError
from .checks import indices, like_outputs, one_hot

__all__ = [
    "BinarySigmoid",
    "BoundedSoftmax",
    "CorrectClassification",
    "MaximizeNeuron",
    "MinimizeNeuron",
    "Misclassification",
    "RateCodedSpikes",
    "Sigmoid",
    "Softmax",
]


class Softmax:
    """`r = o * (y - softmax(o))`, the reward form of cross-entropy. Outputs [n, c], labels [n]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        return outputs * (one_hot(outputs, labels) - outputs.softmax(-1))


class BoundedSoftmax:
    """`Softmax` that stops once the model is sure enough. Outputs [n, c], labels [n].

    Probabilities above `upper` count as 1 and those below `lower` as 0, so an output that is right by that much gets no
    more reward.

    Args:
        lower, upper: bounds of the probability; lfprop calls the second `higher_bound`.
        sign_only: `r = sign(o) * (...)`, so that a reward does not grow with its output.

    Raises:
        RewardError: bounds that are not 0 <= lower <= upper <= 1.
    """

    def __init__(self, lower: float = 0.0, upper: float = 1.0, sign_only: bool = False) -> None:
        if not 0 <= lower <= upper <= 1:
            raise RewardError(f"bounds must be 0 <= lower <= upper <= 1; got lower={lower}, upper={upper}")
        self.lower, self.upper, self.sign_only = lower, upper, sign_only

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        p = outputs.softmax(-1)
        p = torch.where(p > self.upper, 1.0, p)
        p = torch.where(p < self.lower, 0.0, p)
        return (outputs.sign() if self.sign_only else outputs) * (one_hot(outputs, labels) - p)


class Sigmoid:
    """`r = o * (y - sigmoid(o))` with one-hot y. Outputs [n, c], labels [n] or [n, c]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        return outputs * (one_hot(outputs, labels) - outputs.sigmoid())


class BinarySigmoid:
    """`r = o * (y - sigmoid(o))` for labels 0 or 1 of as many entries as outputs."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        return outputs * (like_outputs(outputs, labels) - outputs.sigmoid())


class CorrectClassification:
    """`r = sign(o)` at the label where it is the largest output, zero elsewhere. Outputs [n, c], labels [n]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        chosen = one_hot(outputs, labels)
        correct = outputs.amax(-1, keepdim=True) == (outputs * chosen).sum(-1, keepdim=True)
        return chosen * correct * outputs.sign()


class Misclassification:
    """`r = -sign(o)` at every output above the label's own, zero elsewhere. Outputs [n, c], labels [n]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        own = (outputs * one_hot(outputs, labels)).sum(-1, keepdim=True)
        return -outputs.sign() * (outputs > own)


class MaximizeNeuron:
    """`r = sign(o) * (1 - sigmoid(o))`: outputs grow. Labels are not read.

    Args:
        neuron: the one output, along the last dimension, that is rewarded; None for every output, as lfprop has it.
    """

    def __init__(self, neuron: int | None = None) -> None:
        if neuron is not None and (isinstance(neuron, bool) or not isinstance(neuron, int)):
            raise RewardError(f"neuron={neuron!r} must be the number of an output, or None for all")
        self.neuron = neuron

    def __call__(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        outputs = outputs.detach()
        return _only(outputs.sign() * (1 - outputs.sigmoid()), self.neuron)


class MinimizeNeuron(MaximizeNeuron):
    """`r = -sign(o) * (1 - sigmoid(o))`: outputs fall, the faster the lower they are (lfprop's formula as published)."""

    def __call__(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        return -super().__call__(outputs, labels)


def _only(reward: Tensor, neuron: int | None) -> Tensor:
    if neuron is None:
        return reward
    if not reward.dim() or not -reward.shape[-1] <= neuron < reward.shape[-1]:
        raise RewardError(f"there is no output {neuron} in outputs of shape {list(reward.shape)}")
    kept = torch.zeros_like(reward)
    kept[..., neuron] = reward[..., neuron]
    return kept


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
