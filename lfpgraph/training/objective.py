"""What a batch is trained on: a loss, a reward, the model's own loss, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..composites.spiking import reads_silence
from ..errors import DataError, LfpGraphError, TrainingError
from ..numerics import ZERO_REWARD
from ..rewards import reward_loss
from ..rewards.loss import outputs_of
from ..wrapping.wrapper import wrapping_of
from .data import call_of, rows_of

__all__ = ["Objective", "silence"]


@dataclass(frozen=True)
class Objective:
    """What a batch is trained on; calling it gives the batch's loss, a scalar that is a mean over its rows.

    Attributes:
        loss: a function of (outputs, labels), the mean over the batch; outputs are `.logits` where the model has them.
        reward: instead of a loss: a function of (outputs, labels) that returns the reward of each output, such as those of
            `lfpgraph.rewards`. The batch's mean is maximised. With neither, the model's own `.loss` is used.
        step: instead of both: a function of (model, batch) that returns the loss, for batches of any other form.
        labels: key of the labels in batches that are mappings.

    Raises:
        TrainingError: more than one of loss, reward and step.
    """

    loss: Callable[..., Tensor] | None = None
    reward: Callable[..., Tensor] | None = None
    step: Callable[[nn.Module, Any], Tensor] | None = None
    labels: str = "labels"

    def __post_init__(self) -> None:
        if sum(f is not None for f in (self.loss, self.reward, self.step)) > 1:
            raise TrainingError("give one of loss, reward and step")
        for name in ("loss", "reward", "step"):
            if not callable(getattr(self, name) or len):
                raise TrainingError(f"{name}={getattr(self, name)!r} must be a function")

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
        if not self.takes_labels:
            labels = kwargs.get("labels")
        return self.of_result(result, labels, rows_of(batch), silence(model)), outputs, labels

    @property
    def takes_labels(self) -> bool:
        """Whether a function here takes the labels; otherwise the model does."""
        return self.loss is not None or self.reward is not None

    def parts(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Positional and keyword arguments of the model, and the labels that the loss takes."""
        if not self.takes_labels and not isinstance(batch, Mapping):
            raise TrainingError(
                "the model's own loss needs batches that are mappings; else give the Trainer loss= or reward="
            )
        return call_of(batch, self.labels if self.takes_labels else None)

    def of_result(self, result: Any, labels: Any, rows: int, silent: float = 1.0) -> Tensor:
        """The loss of what the model returned; an output of zero counts as `silent`, see `reward_loss`."""
        function = self.loss or self.reward
        if function is None:
            found = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
            if not isinstance(found, Tensor):
                raise TrainingError("the model returns no .loss: give the Trainer loss=, reward= or step=")
            return found
        outputs = outputs_of(result)
        try:
            value = function(outputs, labels)
            if self.reward is None and (not isinstance(value, Tensor) or value.numel() != 1):
                raise TypeError(f"it gives {_about({'a loss': value})}, where one number in a tensor is needed")
            return value if self.reward is None else reward_loss(outputs, value, silent=silent) / max(rows, 1)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError, LfpGraphError) as error:
            name = getattr(function, "__name__", type(function).__name__)
            about = _about({"outputs": outputs, "labels": labels})
            raise DataError(f"{name} refuses this batch: {error} ({about})") from error


def silence(model: nn.Module) -> float:
    """What an output of exactly zero counts as when it is given a reward, under the composite that the model has."""
    wrapping = wrapping_of(getattr(model, "module", model) if wrapping_of(model) is None else model)
    return ZERO_REWARD if reads_silence(getattr(wrapping, "composite", None)) else 1.0


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
