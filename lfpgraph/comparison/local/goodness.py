"""Forward-forward: blocks learn to tell inputs with right labels from inputs with wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils import _pytree as pytree

from ...errors import InputError
from ..examples import IGNORED
from ..learners import Learner, Loss
from .blocks import Blocks, ByMode

__all__ = ["ForwardForward", "normalised", "with_labels"]

THRESHOLD = 2.0


class ForwardForward(Learner):
    """The forward-forward algorithm (Hinton 2022) on blocks cut behind activations.

        goodness g_k = mean of h_k^2,   L_k = log(1 + exp(t - g_k(right))) + log(1 + exp(g_k(wrong) - t)),   t = 2,

    where `right` and `wrong` are the same inputs with the right and with a wrong label written into their first numbers. A
    block is handed h_{k-1} divided by its root mean square, so that it cannot read the goodness of the one before. The last block
    learns by the loss from inputs with a neutral label, which is how the model is asked afterwards (the paper's quick way).
    (The paper's goodness is the sum of squares; the mean differs in the threshold alone.)
    """

    def __init__(self, model: nn.Module, loss: Loss, inputs: Any) -> None:
        super().__init__(model, loss, inputs)
        self.blocks = ByMode(model, early=False)
        self.classes = self.blocks(with_labels(inputs, None, 1)).shapes()[-1][-1]

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        if labels.is_floating_point() or labels.dim() != 1:
            raise InputError("forward-forward needs one class for each row as labels")
        counted = labels != IGNORED
        other = torch.randint(1, self.classes, labels.shape, device=labels.device)
        wrong = torch.where(counted, (labels + other) % self.classes, labels)
        blocks = self.blocks(inputs)
        right, false = (blocks.flow(with_labels(inputs, y, self.classes)) for y in (labels, wrong))
        last = len(blocks) - 1
        for k in range(last):
            for flow, sign in ((right, -1.0), (false, 1.0)):
                x = flow.run(k)
                flow.hand_over(k, normalised(x.detach()))
                goodness = x[counted].flatten(1).square().mean(1)
                loss = softplus(sign * (goodness - THRESHOLD)).mean()
                if loss.requires_grad:
                    loss.backward()
                del x, goodness, loss
        objective = self.loss(self._neutral(blocks, inputs), labels)
        if objective.requires_grad:
            objective.backward()

    def _neutral(self, blocks: Blocks, inputs: Any) -> Tensor:
        flow = blocks.flow(with_labels(inputs, None, self.classes))
        last = len(blocks) - 1
        with torch.no_grad():
            for k in range(last):
                flow.hand_over(k, normalised(flow.run(k)))
        return flow.run(last)

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Tensor:
        return self._neutral(self.blocks(inputs), inputs)


def normalised(x: Tensor) -> Tensor:
    """Each row over its root mean square."""
    return x / (x.flatten(1).square().mean(1).sqrt() + 1e-8).reshape(-1, *[1] * (x.dim() - 1))


def with_labels(inputs: Any, labels: Tensor | None, classes: int) -> Any:
    """Inputs whose first float tensor has the label of each row in its first numbers, as ones and zeros; 1 / classes without one.

    Raises:
        InputError: there is no float tensor, or its rows are shorter than the number of classes.
    """
    leaves, spec = pytree.tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else inputs)
    place = next((i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()), None)
    if place is None:
        raise InputError("forward-forward writes labels into float inputs, and this model has none")
    x = leaves[place]
    if x[:1].numel() < classes:
        raise InputError(
            f"forward-forward writes {classes} numbers into each row of the input, which has {x[:1].numel()}"
        )
    flat = x.flatten(1).clone()
    flat[:, :classes] = 1 / classes
    if labels is not None:
        counted = labels != IGNORED
        flat[counted, :classes] = nn.functional.one_hot(labels[counted], classes).to(flat)
    leaves[place] = flat.reshape(x.shape)
    return pytree.tree_unflatten(leaves, spec)
