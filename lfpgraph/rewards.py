"""Reward functions, and `reward_loss`, which lets any reward tensor enter training as a loss.

A reward function is called with (outputs, labels) and returns the reward of each output, of the outputs' shape,
detached. Rewards are in the units of the reward function; r_o = -o * dL/do makes a loss L a reward.
Source: LFP (Weber et al. 2025, section 3.3) and lfprop's reward functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import RewardError
from .numerics import stabilize

__all__ = ["BinarySigmoid", "CorrectClassification", "Sigmoid", "Softmax", "reward_loss"]


def reward_loss(outputs: Tensor, reward: Tensor, epsilon: float = 1e-6) -> Tensor:
    """A scalar whose `.backward()` gives `reward` to `outputs`.

    The value is minus the summed reward. Its gradient at the outputs is minus the signal of that reward, `-reward /
    outputs` (outputs below epsilon are stabilized), so any reward will do, differentiable or not.

    Args:
        outputs: a float tensor of a wrapped model, any shape.
        reward: same shape, or broadcastable to it.
        epsilon: stabilizer for outputs near zero.

    Raises:
        RewardError: the shapes do not fit, or outputs carry no signal.
    """
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise RewardError(f"reward_loss needs a float tensor of outputs, not {_kind(outputs)}")
    if not outputs.requires_grad:
        raise RewardError("the outputs carry no signal back: run the wrapped model with autograd on, outside no_grad.")
    reward = torch.as_tensor(reward, dtype=outputs.dtype, device=outputs.device).detach()
    try:
        reward = reward.expand_as(outputs)
    except RuntimeError:
        raise RewardError(
            f"reward of shape {list(reward.shape)} does not fit outputs of shape {list(outputs.shape)}; give one reward "
            "for each output"
        ) from None
    return _RewardLoss.apply(outputs, reward, epsilon)


class _RewardLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, reward: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(outputs, reward)
        ctx.epsilon = epsilon
        return -reward.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        outputs, reward = ctx.saved_tensors
        small = outputs.abs() <= ctx.epsilon
        return (
            -gradients[0] * reward / torch.where(small, stabilize(outputs, ctx.epsilon), outputs),
            None,
            None,
        )


def _kind(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def _one_hot(outputs: Tensor, labels: Tensor) -> Tensor:
    """Labels [n] of class indices as [n, c]; labels of the outputs' shape stay."""
    if labels.shape == outputs.shape:
        return labels.to(outputs.dtype)
    if labels.shape != outputs.shape[:-1]:
        raise RewardError(f"labels of shape {list(labels.shape)} do not fit outputs of shape {list(outputs.shape)}")
    classes = outputs.shape[-1]
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise RewardError(f"labels must be between 0 and {classes - 1}; got {int(labels.min())} to {int(labels.max())}")
    return torch.nn.functional.one_hot(labels.long(), classes).to(outputs.dtype)


class Softmax:
    """`r = o * (y - softmax(o))`, the reward form of cross-entropy. Outputs [n, c], labels [n]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        return outputs * (_one_hot(outputs, labels) - outputs.softmax(-1))


class Sigmoid:
    """`r = o * (y - sigmoid(o))` with one-hot y. Outputs [n, c], labels [n] or [n, c]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        return outputs * (_one_hot(outputs, labels) - outputs.sigmoid())


class BinarySigmoid:
    """`r = o * (y - sigmoid(o))` for labels 0 or 1 of as many entries as outputs."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        if labels.numel() != outputs.numel():
            raise RewardError(f"labels of shape {list(labels.shape)} do not fit outputs of shape {list(outputs.shape)}")
        return outputs * (labels.reshape(outputs.shape).to(outputs.dtype) - outputs.sigmoid())


class CorrectClassification:
    """`r = sign(o)` at the label where it is the largest output, zero elsewhere. Outputs [n, c], labels [n]."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.detach()
        chosen = _one_hot(outputs, labels)
        correct = outputs.amax(-1, keepdim=True) == (outputs * chosen).sum(-1, keepdim=True)
        return chosen * correct * outputs.sign()
