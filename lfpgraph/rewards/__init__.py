"""Reward functions, and `reward_loss`, which lets any reward tensor enter training as a loss.

A reward function is called with (outputs, labels) and returns the reward of each output, of the outputs' shape,
detached. Rewards are in the units of the reward function; r_o = -o * dL/do makes a loss L a reward.
Source: LFP (Weber et al. 2025, section 3.3) and lfprop's reward functions.
"""

from .classification import (
    BinarySigmoid,
    BoundedSoftmax,
    CorrectClassification,
    MaximizeNeuron,
    MinimizeNeuron,
    Misclassification,
    RateCodedSpikes,
    Sigmoid,
    Softmax,
)
from .loss import reward_loss
from .programs import Callback, PairwisePreference, ScalarReward
from .regression import AbsoluteError, SquaredError

__all__ = [
    "AbsoluteError",
    "BinarySigmoid",
    "BoundedSoftmax",
    "Callback",
    "CorrectClassification",
    "MaximizeNeuron",
    "MinimizeNeuron",
    "Misclassification",
    "PairwisePreference",
    "RateCodedSpikes",
    "ScalarReward",
    "Sigmoid",
    "Softmax",
    "SquaredError",
    "reward_loss",
]
