"""Rewards from people and programs: one number per sample, a preference between two, whatever a function returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import RewardError, check_choice
from .checks import check_positive, indices, numbers

__all__ = ["Callback", "PairwisePreference", "ScalarReward"]


class ScalarReward:
    """One number for what the model chose. Outputs [n, c]; rewards [n]; actions [n], the outputs chosen.

    The signal is `(R - baseline) * (y_a - softmax(o))`, the likelihood-ratio estimate (Williams 1992, REINFORCE) of a
    policy that draws action a from softmax(o); so `r = o * (R - baseline) * (y_a - softmax(o))`. Nothing needs to be
    known of the actions that were not taken.

    Args:
        baseline: "mean", a running mean of the rewards seen, taken off first; or "none". With actions that the policy
            itself would hardly draw (`sample(explore=...)`) take "none": a punishment for those never ends.
        decay: of the running mean, per call.

    Raises:
        RewardError: an unknown baseline; shapes that do not fit.
    """

    def __init__(self, baseline: str = "mean", decay: float = 0.95) -> None:
        check_choice("baseline", baseline, ("none", "mean"), RewardError)
        self.baseline, self.decay = baseline, decay
        self._mean: Tensor | None = None

    def __call__(self, outputs: Tensor, rewards: Any, actions: Tensor | None = None) -> Tensor:
        """Reward of each output; without `actions`, the largest output of each row was chosen."""
        outputs = outputs.detach()
        if outputs.dim() != 2:
            raise RewardError(f"ScalarReward needs outputs [n, c]; got {list(outputs.shape)}")
        rewards = numbers(rewards, "rewards").detach().to(outputs)
        if rewards.shape != outputs.shape[:1]:
            raise RewardError(f"{list(rewards.shape)} rewards do not fit {outputs.shape[0]} samples; give one for each")
        chosen = outputs.argmax(-1) if actions is None else actions
        chosen = indices(chosen, outputs.shape[:1], outputs.shape[1], "actions").to(outputs.device)
        advantage = rewards - self._expected(rewards)
        y = torch.nn.functional.one_hot(chosen, outputs.shape[1]).to(outputs.dtype)
        return outputs * advantage.unsqueeze(1) * (y - outputs.softmax(-1))

    def _expected(self, rewards: Tensor) -> Tensor:
        if self.baseline == "none" or not rewards.numel():
            return rewards.new_zeros(())
        now = rewards.mean()
        before = now if self._mean is None else self._mean.to(now)
        self._mean = self.decay * before + (1 - self.decay) * now
        return before

    @staticmethod
    def sample(outputs: Tensor, explore: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each row from softmax(outputs). Outputs [n, c]; returns [n].

        Args:
            explore: share of the draws that are uniform over all actions, so that one given up is tried again; 0 to 1.
        """
        if outputs.dim() != 2:
            raise RewardError(f"sample needs outputs [n, c]; got {list(outputs.shape)}")
        if isinstance(explore, bool) or not isinstance(explore, int | float) or not 0 <= explore <= 1:
            raise RewardError(f"explore={explore!r} must be a share, 0 to 1")
        p = outputs.detach().softmax(-1)
        return torch.multinomial((1 - explore) * p + explore / p.shape[-1], 1, generator=generator).squeeze(1)


class PairwisePreference:
    """The first of two is preferred to the second (Bradley and Terry 1952).

    `L = -log sigmoid(beta * (o_a - o_b))`, so the signal is `beta * sigmoid(-beta * (o_a - o_b))` at a and minus that at b.
    Outputs [n, c] and pairs [n, 2] of classes, one pair a row; or scores [n] or [n, 1] and pairs [m, 2] of rows.

    Args:
        beta: how sharply a difference counts.
    """

    def __init__(self, beta: float = 1.0) -> None:
        check_positive("beta", beta)
        self.beta = beta

    def __call__(self, outputs: Tensor, pairs: Any) -> Tensor:
        outputs, pairs = outputs.detach(), numbers(pairs, "pairs")
        if pairs.dim() != 2 or pairs.shape[1] != 2:
            raise RewardError(f"pairs must be [m, 2], (preferred, rejected); got {list(pairs.shape)}")
        scores = outputs.reshape(1, -1) if outputs.dim() == 1 or outputs.shape[-1] == 1 else outputs
        if scores.dim() != 2 or (scores.shape[0] not in (1, pairs.shape[0])):
            raise RewardError(f"pairs of shape {list(pairs.shape)} do not fit outputs of shape {list(outputs.shape)}")
        pairs = indices(pairs, pairs.shape, scores.shape[1], "pairs").to(outputs.device)
        rows = torch.arange(len(pairs), device=outputs.device) if scores.shape[0] > 1 else pairs.new_zeros(len(pairs))
        better, worse = pairs[:, 0], pairs[:, 1]
        pull = self.beta * torch.sigmoid(-self.beta * (scores[rows, better] - scores[rows, worse]))
        signal = torch.zeros_like(scores)
        signal.index_put_((rows, better), pull, accumulate=True)
        signal.index_put_((rows, worse), -pull, accumulate=True)
        return (scores * signal).reshape(outputs.shape)


class Callback:
    """Whatever a function says: `function(outputs, ...)` returns the reward of each output.

    Args:
        function: gets detached outputs, and what else the callback is called with (by `lfpgraph.Trainer`, labels); may
            return a tensor, an array, a list or a number that broadcasts to the outputs' shape.

    Raises:
        RewardError: at the call, where the answer does not fit or is not finite.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise RewardError(f"Callback takes a function of the outputs, not {function!r}")
        self.function = function

    def __call__(self, outputs: Tensor, *given: Any, **named: Any) -> Tensor:
        outputs = outputs.detach()
        if not given and not named and not _takes_one(self.function):
            given = (None,)  # it was written for labels, and there are none
        answer = self.function(outputs, *given, **named)
        try:
            reward = torch.as_tensor(answer).detach().to(outputs).expand_as(outputs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RewardError(
                f"the reward function's answer does not fit outputs of shape {list(outputs.shape)}: {error}"
            ) from None
        if not bool(torch.isfinite(reward).all()):
            raise RewardError("the reward function answered NaN or infinity")
        return reward


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with one argument; one that does not say is taken to be."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # written in C
        return True
    return True
