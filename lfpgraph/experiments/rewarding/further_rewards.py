"""Rewards of post-training, correlation, contrast and energy: what an MLP makes of each on digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ... import rewards
from ...demo.data import Arrays
from ..common.data import flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way, accuracy, rewarded
from ..common.models import mlp, seeded
from ..common.rates import at_best

__all__ = ["ranked", "run", "same_class_nearest"]

RATES = (1e-3, 3e-3, 1e-2)
ANSWERS, CLASSES = 4, 10


def shown(policy: rewards.PolicyGradient) -> Callable[[Tensor, Tensor], Tensor]:
    """Labels are demonstrations."""
    return lambda outputs, labels: policy.loss(rewards.log_probs_of(outputs, labels))


def tried(policy: rewards.PolicyGradient) -> Callable[[Tensor, Tensor], Tensor]:
    """Four answers to each image, told right or wrong, against the mean of the four."""

    def objective(outputs: Tensor, labels: Tensor) -> Tensor:
        tokens = outputs.detach().softmax(1).multinomial(ANSWERS, replacement=True).flatten()
        scores = (tokens == labels.repeat_interleave(ANSWERS)).float()
        log_p = rewards.log_probs_of(outputs.repeat_interleave(ANSWERS, 0), tokens)
        how = {"old": log_p.detach()} if policy.reference == "old" else {}
        return policy.loss(log_p, rewards.group_advantages(scores, ANSWERS), **how)

    return objective


def same_class_nearest(outputs: Tensor, labels: Tensor) -> float:
    """How often the row that is nearest by cosine is of the same class."""
    alike = torch.nn.functional.normalize(outputs) @ torch.nn.functional.normalize(outputs).mT
    nearest = alike.fill_diagonal_(-2).argmax(1)
    return (labels[nearest] == labels).float().mean().item()


def ranked(outputs: Tensor, real: Tensor) -> float:
    """How often a digit has less energy than what is none (the area under the curve)."""
    energy = -outputs.logsumexp(1)
    return (energy[real.bool()][:, None] < energy[~real.bool()][None]).float().mean().item()


def _with_shuffled(data: Arrays) -> Arrays:
    """Digits in turn with the same whose pixels are in another order."""
    x, _ = data
    order = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    return torch.stack([x, x.gather(1, order)], 1).flatten(0, 1), torch.tensor([1, 0]).repeat(len(x))


def run(settings: Settings) -> Report:
    """A row for each reward, both sides at their own best rates."""
    train, test = flat_digits()
    policy = rewards.PolicyGradient
    start = seeded(lambda: mlp([64, 64, CLASSES]))
    correlation = rewards.Correlation()
    tasks: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Any, Arrays, Arrays]] = {
        "sft": (shown(policy.sft()), accuracy, train, test),
        "dft": (shown(policy.dft()), accuracy, train, test),
        "reinforce": (tried(policy.reinforce()), accuracy, train, test),
        "rloo": (tried(policy.rloo()), accuracy, train, test),
        "grpo": (tried(policy.grpo()), accuracy, train, test),
        "correlation": (
            rewarded(lambda outputs, labels: correlation(outputs, one_hot(labels, CLASSES).float())), accuracy, train, test,
        ),
        "contrast": (rewarded(rewards.Contrast(0.5)), same_class_nearest, train, test),
        "energy": (rewarded(rewards.Energy(0.1)), ranked, _with_shuffled(train), _with_shuffled(test)),
    }  # fmt: skip
    cases: list[Case] = []
    for name, (objective, score, given, held_out) in tasks.items():
        ways = [Way("LFP", "lfp", objective), Way("backprop", None, objective)]
        how: dict[str, Any] = {"epochs": 15, "name": name, "score": score, "start": start, "choosing": 1}
        how["batch_size"] = 128 if name == "contrast" else 64  # no last batch so small that all its labels differ
        cases += at_best(start(0), ways, RATES, given, held_out, settings, **how)[0]
    return Report("further_rewards", "accuracy", cases, draw_bars, (9, 4))
