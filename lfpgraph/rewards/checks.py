"""What reward functions check of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RewardError

__all__ = ["indices", "like_outputs", "one_hot"]


def indices(labels: Tensor, shape: torch.Size, classes: int, what: str = "labels") -> Tensor:
    """Labels as class indices of a shape, on their own device.

    Raises:
        RewardError: another shape, no whole numbers, or out of range.
    """
    if labels.shape != shape:
        raise RewardError(f"{what} of shape {list(labels.shape)} do not fit; expected {list(shape)}")
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise RewardError(f"{what} must be whole numbers, the indices of classes")
    labels = labels.long()
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise RewardError(f"{what} must be between 0 and {classes - 1}; got {int(labels.min())} to {int(labels.max())}")
    return labels


def one_hot(outputs: Tensor, labels: Tensor) -> Tensor:
    """Labels [n] of class indices as [n, c]; labels of the outputs' shape stay."""
    if labels.shape == outputs.shape:
        return labels.to(outputs.dtype)
    if outputs.dim() == 0 or labels.shape != outputs.shape[:-1]:
        raise RewardError(f"labels of shape {list(labels.shape)} do not fit outputs of shape {list(outputs.shape)}")
    classes = outputs.shape[-1]
    labels = indices(labels, outputs.shape[:-1], classes).to(outputs.device)
    return torch.nn.functional.one_hot(labels, classes).to(outputs.dtype)


def like_outputs(outputs: Tensor, values: Tensor, what: str = "labels") -> Tensor:
    """Values of as many entries as outputs, in their shape and dtype."""
    if values.numel() != outputs.numel():
        raise RewardError(f"{what} of shape {list(values.shape)} do not fit outputs of shape {list(outputs.shape)}")
    return values.reshape(outputs.shape).to(outputs)
