"""Reward functions, and `reward_loss`, which lets any reward tensor enter training as a loss.

A reward function is called with (outputs, labels) and returns the reward of each output, of the outputs' shape,
detached. Rewards are in the units of the reward function; r_o = -o * dL/do makes a loss L a reward.
Source: LFP (Weber et al. 2025, section 3.3) and lfprop's reward functions.
"""

from .advantages import SASR, HybridPostTraining, generalized_advantages, group_advantages
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
from .policy_gradient import PolicyGradient, log_probs_of
from .programs import Callback, PairwisePreference, ScalarReward
from .regression import AbsoluteError, SquaredError
from .representations import Contrast, Correlation, Energy

__all__ = [
    "SASR",
    "AbsoluteError",
    "BinarySigmoid",
    "BoundedSoftmax",
    "Callback",
    "Contrast",
    "CorrectClassification",
    "Correlation",
    "Energy",
    "HybridPostTraining",
    "MaximizeNeuron",
    "MinimizeNeuron",
    "Misclassification",
    "PairwisePreference",
    "PolicyGradient",
    "RateCodedSpikes",
    "ScalarReward",
    "Sigmoid",
    "Softmax",
    "SquaredError",
    "generalized_advantages",
    "group_advantages",
    "log_probs_of",
    "reward_loss",
]
