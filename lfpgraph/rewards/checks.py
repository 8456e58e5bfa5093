"""What reward functions check of their arguments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import RewardError

__all__ = ["check_positive", "indices", "like_outputs", "numbers", "one_hot"]


def check_positive(option: str, value: Any) -> None:
    """Raise a RewardError unless an option is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RewardError(f"{option} must be a positive number; got {value!r}")


def numbers(values: Any, what: str = "labels") -> Tensor:
    """What came with the outputs as a tensor: one, an array, or a list of numbers.

    Raises:
        RewardError: it is something else.
    """
    try:
        found = torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError):
        raise RewardError(f"{what} must be a tensor, an array or a list of numbers, not {repr(values)[:200]}") from None
    if found.is_complex():
        raise RewardError(f"{what} must be real numbers, not {found.dtype}")
    return found


def indices(labels: Any, shape: torch.Size, classes: int, what: str = "labels") -> Tensor:
    """Labels as class indices of a shape, on their own device.

    Raises:
        RewardError: another shape, no whole numbers, or out of range.
    """
    labels = numbers(labels, what)
    if labels.shape != shape:
        raise RewardError(f"{what} of shape {list(labels.shape)} do not fit; expected {list(shape)}")
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise RewardError(f"{what} must be whole numbers, the indices of classes")
    labels = labels.long()
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise RewardError(f"{what} must be between 0 and {classes - 1}; got {int(labels.min())} to {int(labels.max())}")
    return labels


def one_hot(outputs: Tensor, labels: Any) -> Tensor:
    """Labels [n] of class indices as [n, c]; labels of the outputs' shape stay."""
    labels = numbers(labels)
    if labels.shape == outputs.shape:
        return labels.to(outputs)
    if outputs.dim() == 0 or labels.shape != outputs.shape[:-1]:
        raise RewardError(f"labels of shape {list(labels.shape)} do not fit outputs of shape {list(outputs.shape)}")
    classes = outputs.shape[-1]
    labels = indices(labels, outputs.shape[:-1], classes).to(outputs.device)
    return torch.nn.functional.one_hot(labels, classes).to(outputs.dtype)


def like_outputs(outputs: Tensor, values: Any, what: str = "labels") -> Tensor:
    """Values of the outputs' shape, but for dimensions of one, in that shape and dtype."""
    values = numbers(values, what)
    if [size for size in values.shape if size != 1] != [size for size in outputs.shape if size != 1]:
        raise RewardError(f"{what} of shape {list(values.shape)} do not fit outputs of shape {list(outputs.shape)}")
    return values.reshape(outputs.shape).to(outputs)
