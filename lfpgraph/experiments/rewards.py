"""Rewards for classes on digits, for two on breast cancer, and a bandit that is told right or wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from .. import rewards
from ..rewards import reward_loss
from .common.data import breast_cancer, flat_digits
from .common.drawing import draw_bars
from .common.harness import Case, Report, Settings, Way, fit, rewarded
from .common.models import mlp, seeded

__all__ = ["bandit", "run"]


def bandit() -> Way:
    """The environment is asked of one action a sample and answers 1 if it was the label, else 0."""
    reward = rewards.ScalarReward(baseline="none")

    def objective(outputs: Tensor, labels: Tensor) -> Tensor:
        actions = reward.sample(outputs, explore=0.1)
        answers = (actions == labels).float()
        return reward_loss(outputs, reward(outputs, answers, actions)) / len(labels)

    return Way("LFP", "lfp-epsilon", objective)


def run(settings: Settings) -> Report:
    """One row for each reward; backprop stands beside those that are a loss's."""
    train, test = flat_digits()
    named: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "softmax": rewards.Softmax(),
        "bounded softmax": rewards.BoundedSoftmax(0.02, 0.98),
        "sigmoid": rewards.Sigmoid(),
        "misclassification": rewards.Misclassification(),
        "correct": rewards.CorrectClassification(),
    }
    start = seeded(lambda: mlp([64, 128, 64, 10]))
    cases: list[Case] = []
    for name, reward in named.items():
        ways = [Way("LFP", "lfp-epsilon", rewarded(reward))]
        ways += [Way("backprop", None, cross_entropy)] if name == "softmax" else []
        cases += fit(start(0), ways, train, test, settings, epochs=20, name=name, start=start)
    cases += fit(start(0), [bandit()], train, test, settings, epochs=60, name="bandit", start=start)
    train, test = breast_cancer()
    start = seeded(lambda: mlp([30, 32, 32, 1]))
    ways = [
        Way("LFP", "lfp-epsilon", rewarded(rewards.BinarySigmoid()), lr=1e-3),
        Way("backprop", None, lambda o, y: binary_cross_entropy_with_logits(o.squeeze(1), y.float()), lr=1e-3),
    ]
    cases += fit(start(0), ways, train, test, settings, epochs=20, name="breast cancer", score=_binary, start=start)
    return Report("rewards", "accuracy", cases, draw_bars, (9, 4))


def _binary(outputs: Tensor, labels: Tensor) -> float:
    return ((outputs.squeeze(1) > 0) == labels.bool()).float().mean().item() if len(labels) else float(torch.nan)
