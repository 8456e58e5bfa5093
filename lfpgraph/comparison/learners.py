"""What trains a model in one way: it sets gradients, which an optimizer then steps on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.calls import arguments_of, flatten_output
from ..graph.graph import takes_reward

__all__ = ["Learner", "Loss", "output_of"]

Loss = Callable[[Tensor, Tensor], Tensor]


def output_of(model: nn.Module, inputs: Any) -> Tensor:
    """The first of the model's outputs that is a float tensor and no scalar: the logits, not the loss.

    Args:
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        InputError: there is none.
    """
    args, kwargs = arguments_of(inputs, InputError)
    out = model(*args, **kwargs)
    found = next((t for t in flatten_output(out)[0] if takes_reward(t)), None)
    if found is None:
        raise InputError(f"{type(model).__name__} returns no float tensor with a dimension, but {type(out).__name__}")
    return found


class Learner:
    """Trains by the backward pass of the loss: the gradient, or feedback where the model is wrapped.

    Args:
        inputs: those of one batch, as an example.
    """

    def __init__(self, model: nn.Module, loss: Loss, inputs: Any) -> None:
        self.model, self.loss = model, loss

    def reset(self) -> None:
        """Begin a run: forget what was learnt beside the model's own weights, which somebody else sets."""

    def more_parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model."""
        return []

    def kept(self) -> list[Tensor]:
        """Tensors that are kept from step to step beside the model and what is trained."""
        return []

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        """Set `.grad` of all that is trained."""
        objective = self.loss(output_of(self.model, inputs), labels)
        if objective.requires_grad:  # a network that ends in a step has nothing to differentiate
            objective.backward()

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Tensor:
        """What the trained model answers, in the mode that it is in."""
        return output_of(self.model, inputs)
