"""Rewards for classes on digits, for two on breast cancer, and a bandit that is told right or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ... import rewards
from ...rewards import reward_loss
from ..common.data import breast_cancer, flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way, rewarded
from ..common.models import mlp, seeded
from ..common.rates import at_best

__all__ = ["bandit", "run"]

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def bandit() -> Way:
    """The environment is asked of one action a sample and answers 1 if it was the label, else 0."""
    reward = rewards.ScalarReward(baseline="none")

    def objective(outputs: Tensor, labels: Tensor) -> Tensor:
        actions = reward.sample(outputs, explore=0.1)
        answers = (actions == labels).float()
        return reward_loss(outputs, reward(outputs, answers, actions)) / len(labels)

    return Way("LFP", "lfp", objective)


def run(settings: Settings) -> Report:
    """One row for each reward, at its best rate; backprop stands beside those that are a loss's."""
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
        ways = [Way("LFP", "lfp", rewarded(reward))]
        ways += [Way("backprop", None, cross_entropy)] if name == "softmax" else []
        cases += at_best(start(0), ways, RATES, train, test, settings, epochs=20, name=name, start=start)[0]
    cases += at_best(start(0), [bandit()], RATES, train, test, settings, epochs=60, name="bandit", start=start)[0]
    train, test = breast_cancer()
    start = seeded(lambda: mlp([30, 32, 32, 1]))
    ways = [
        Way("LFP", "lfp", rewarded(rewards.BinarySigmoid())),
        Way("backprop", None, lambda o, y: binary_cross_entropy_with_logits(o.squeeze(1), y.float())),
    ]
    how: dict[str, Any] = {"epochs": 20, "name": "breast cancer", "score": _binary, "start": start}
    cases += at_best(start(0), ways, RATES, train, test, settings, **how)[0]
    return Report("rewards", "accuracy", cases, draw_bars, (9, 4))


def _binary(outputs: Tensor, labels: Tensor) -> float:
    return ((outputs.squeeze(1) > 0) == labels.bool()).float().mean().item() if len(labels) else float(torch.nan)
