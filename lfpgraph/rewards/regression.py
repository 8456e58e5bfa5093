"""Rewards for numbers. Targets have the outputs' shape, but for dimensions of one.

lfprop's regression propagator takes the target for a reference point of the last layer and is marked "not really
working" by its authors. In signal form none is needed: the signal of a loss is `-dL/do`, and its reward `-o * dL/do`.
"""

from __future__ import annotations

from torch import Tensor

from .checks import check_positive, like_outputs

__all__ = ["AbsoluteError", "SquaredError"]


class SquaredError:
    """`r = o * (t - o)`, the reward form of half the squared error; with `delta`, of Huber's loss.

    Args:
        delta: errors beyond it count as that much, so that outliers do not rule.

    Raises:
        RewardError: delta is not positive.
    """

    def __init__(self, delta: float | None = None) -> None:
        if delta is not None:
            check_positive("delta", delta)
        self.delta = delta

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.detach()
        error = like_outputs(outputs, targets, "targets") - outputs
        return outputs * (error if self.delta is None else error.clamp(-self.delta, self.delta))


class AbsoluteError:
    """`r = o * sign(t - o)`, the reward form of the absolute error."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.detach()
        return outputs * (like_outputs(outputs, targets, "targets") - outputs).sign()
