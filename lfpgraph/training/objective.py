"""What a batch is trained on: a loss, a reward, the model's own loss, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, LfpGraphError, TrainingError
from ..rewards import reward_loss
from ..rewards.outputs import outputs_of
from .data import call_of, rows_of

__all__ = [
    "Objective",
]


class Objective:
    """The loss of a batch, a scalar that is a mean over the batch's rows.

    Args:
        loss: of (outputs, labels). reward: of (outputs, labels), returns the reward of each output. step: of
            (model, batch), returns the loss. With none of them the model's own `.loss`. labels: their key in a mapping.

    Raises:
        TrainingError: more than one of them.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor] | None,
        reward: Callable[..., Tensor] | None,
        step: Callable[[nn.Module, Any], Tensor] | None,
        labels: str,
    ) -> None:
        if sum(f is not None for f in (loss, reward, step)) > 1:
            raise TrainingError("give one of loss, reward and step")
        self.loss, self.reward, self.step = loss, reward, step
        self.labels = labels if loss is not None or reward is not None else None

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        """The loss of a batch on the model's device, the outputs and the labels (None where `step` is in use).

        Raises:
            DataError: the loss or the reward refuses the labels.
        """
        if self.step is not None:
            return self.step(model, batch), None, None
        args, kwargs, labels = self.parts(batch)
        try:
            result = model(*args, **kwargs)
        except IndexError as error:  # a loss inside the model
            raise DataError(f"{error} {_about(kwargs)}") from error
        outputs = outputs_of(result)
        if self.loss is None and self.reward is None:
            labels = kwargs.get("labels")
        return self.of_result(result, labels, rows_of(batch)), outputs, labels

    def parts(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Positional and keyword arguments of the model, and the labels that the loss takes."""
        if self.loss is None and self.reward is None and not isinstance(batch, Mapping):
            raise TrainingError(
                "the model's own loss needs batches that are mappings; else give the Trainer loss= or reward="
            )
        return call_of(batch, self.labels)

    def of_result(self, result: Any, labels: Any, rows: int) -> Tensor:
        """The loss of what the model returned."""
        function = self.loss or self.reward
        if function is None:
            found = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
            if not isinstance(found, Tensor):
                raise TrainingError("the model returns no .loss: give the Trainer loss=, reward= or step=")
            return found
        outputs = outputs_of(result)
        try:
            value = function(outputs, labels)
            return value if self.reward is None else reward_loss(outputs, value) / max(rows, 1)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError, LfpGraphError) as error:
            name = getattr(function, "__name__", type(function).__name__)
            about = _about({"outputs": outputs, "labels": labels})
            raise DataError(f"{name} refuses this batch: {error} ({about})") from error


def _about(named: Mapping[str, Any]) -> str:
    """Shapes of tensors, and the range of whole numbers."""
    said = []
    for name, x in named.items():
        if isinstance(x, Tensor):
            whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool) and x.numel()
            said.append(f"{name} {list(x.shape)}" + (f" from {int(x.min())} to {int(x.max())}" if whole else ""))
        else:
            said.append(f"{name} of type {type(x).__name__}")
    return ", ".join(said)
