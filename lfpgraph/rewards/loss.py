"""`reward_loss`: any reward tensor enters training as something with `.backward()`; and what a reward is given to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import RewardError
from ..numerics import ZERO_REWARD, stabilize
from .checks import check_positive, numbers

__all__ = ["outputs_of", "reward_loss"]

log = logging.getLogger("lfpgraph")
_told: list[bool] = []  # that the warning has been given


def reward_loss(outputs: Tensor, reward: Tensor, epsilon: float = ZERO_REWARD, silent: float | None = None) -> Tensor:
    """A scalar whose `.backward()` gives `reward` to `outputs`.

    The value is minus the summed reward. Its gradient at the outputs is minus the signal of that reward, `-reward /
    outputs` (outputs of at most epsilon in size are stabilized). So any reward will do, differentiable or not.

    Args:
        outputs: a float tensor of a wrapped model, any shape.
        reward: same shape, or broadcastable to it.
        epsilon: stabilizer for outputs near zero.
        silent: what an output of exactly zero counts as, a spike that did not happen: its reward becomes the signal
            `reward / silent`. The thresholds of `lfp-snn` want epsilon, which is the default, and read it back. With any other
            composite give 1.0: what silence gets is then as large as what a spike gets. Where outputs of zero have a reward
            and silent is not given, one warning says so.

    Raises:
        RewardError: the shapes do not fit, or outputs carry no signal while autograd is on.
    """
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise RewardError(f"reward_loss needs a float tensor of outputs, not {_kind(outputs)}")
    if not outputs.requires_grad and torch.is_grad_enabled():  # under no_grad an evaluation wants the number alone
        raise RewardError(
            "the outputs carry no signal back: the wrapped model ran under no_grad, or they were detached; run it with "
            "autograd on"
        )
    if silent is not None:
        check_positive("silent", silent)
    reward = numbers(reward, "reward").detach().to(outputs)
    try:
        reward = reward.expand_as(outputs)
    except RuntimeError:
        raise RewardError(
            f"reward of shape {list(reward.shape)} does not fit outputs of shape {list(outputs.shape)}; give one reward "
            "for each output"
        ) from None
    if silent is None and not _told and bool(((outputs.detach() == 0) & (reward != 0)).any()):
        _told.append(True)
        log.warning(
            "reward_loss: outputs of exactly zero have a reward, which becomes the signal reward / %g. lfp-snn reads that back; "
            "with any other composite give silent=1.0, or these outputs outweigh all others",
            epsilon,
        )
    return _RewardLoss.apply(outputs, reward, epsilon, epsilon if silent is None else silent)


class _RewardLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, reward: Tensor, epsilon: float, silent: float) -> Tensor:
        ctx.save_for_backward(outputs, reward)
        ctx.epsilon, ctx.silent = epsilon, silent
        return -reward.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        outputs, reward = ctx.saved_tensors
        small = outputs.abs() <= ctx.epsilon
        size = torch.where(small, stabilize(outputs, ctx.epsilon), outputs)
        return -gradients[0] * reward / torch.where(outputs == 0, ctx.silent, size), None, None, None


def _kind(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def outputs_of(result: Any) -> Any:
    """The tensor that losses, rewards and metrics look at: `.logits`, the first entry of a tuple, or the result itself."""
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if logits is not None:
        return logits
    return result[0] if isinstance(result, list | tuple) and result else result
