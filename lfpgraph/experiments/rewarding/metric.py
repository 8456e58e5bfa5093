"""Training by right and wrong alone: what an outside program answers, beside zeroth-order training on as many passes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from ...comparison import zeroth_order
from ...rewards import ScalarReward, reward_loss
from ..common.data import flat_digits
from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way, accuracy
from ..common.models import mlp, seeded
from ..common.rates import at_best, tuned

__all__ = ["run"]

EPOCHS = 40
EXPLORE = 0.1  # share of the guesses that are blind
PASSES = 1.5  # a step that runs backward costs about three forward passes; zeroth-order training has two


def run(settings: Settings) -> Report:
    """An MLP on digits. The ways that guess are told of each guess whether it is right, zeroth-order training how many are."""
    train, test = flat_digits()
    start = seeded(lambda: mlp([64, 128, 64, 10]))
    guessing = [
        Way("LFP", "lfp", _reward),
        Way("the same by backprop", None, _reward),
        Way("policy gradient", None, _policy),
        Way("backprop", None, cross_entropy),  # is told the labels
    ]
    cases, notes = tuned(
        start(0), guessing, (1e-3, 3e-3, 1e-2), train, test, settings, epochs=EPOCHS, name="digits", start=start
    )
    blind = [
        Way(
            f"MeZO, width {width:g}",
            None,
            cross_entropy,
            clip=None,
            optimizer="SGD",
            gradients=zeroth_order(width, _error),
        )
        for width in (1e-2, 3e-2, 1e-1)
    ]
    epochs = round(EPOCHS * PASSES)
    found, chosen = at_best(
        start(0), blind, (1e-3, 1e-2, 1e-1, 1.0), train, test, settings, epochs=epochs, name="digits", start=start
    )
    return Report("metric", "accuracy", cases + found, draw_curves, (10, 4), notes + chosen)


_REWARD = ScalarReward(baseline="none")


def _guesses(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One guess for each sample, a tenth of them blind, and 1 for each that is right."""
    guesses = _REWARD.sample(outputs, explore=EXPLORE)
    return guesses, (guesses == labels).float()


def _reward(outputs: Tensor, labels: Tensor) -> Tensor:
    guesses, answers = _guesses(outputs, labels)
    return reward_loss(outputs, _REWARD(outputs, answers, guesses)) / len(labels)


def _policy(outputs: Tensor, labels: Tensor) -> Tensor:
    """REINFORCE (Williams 1992) with the batch's mean as the baseline, of the same guesses."""
    guesses, answers = _guesses(outputs, labels)
    chances = (1 - EXPLORE) * outputs.softmax(-1) + EXPLORE / outputs.shape[-1]
    of_guesses = chances.gather(1, guesses[:, None]).squeeze(1).log()
    return -((answers - answers.mean()) * of_guesses).mean()


def _error(outputs: Tensor, labels: Tensor) -> float:
    return 1 - accuracy(outputs, labels)
