"""What reaches the layers of a model while it trains: the size of the feedback, and units that get none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Layers"]

EVERY = 4  # steps from look to look


class Layers:
    """By matrix and epoch: the mean norm of what the optimizer was handed, and the share of units that were handed nothing.

    A unit is a row of a matrix (an output, a channel). It is silent in an epoch in which its
    row was zero whenever it was looked at.
    """

    def __init__(self) -> None:
        self.norms: dict[str, list[float]] = {}
        self.silent: dict[str, list[float]] = {}
        self._sums: dict[str, list[float]] = {}
        self._reached: dict[str, Tensor] = {}

    def look(self, model: nn.Module, step: int) -> None:
        """Take note of the gradients after a step."""
        if step % EVERY:
            return
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            if parameter.dim() < 2 or not parameter.requires_grad or (grad is not None and grad.is_sparse):
                continue
            handed = torch.zeros(len(parameter), 1) if grad is None else grad.detach().flatten(1).float()
            rows = torch.linalg.vector_norm(handed, dim=1)
            self._sums.setdefault(name, []).append(float(rows.norm()))
            reached = rows != 0
            self._reached[name] = reached | self._reached[name] if name in self._reached else reached

    def close(self) -> None:
        """The end of an epoch."""
        for name, norms in self._sums.items():
            self.norms.setdefault(name, []).append(sum(norms) / len(norms))
            self.silent.setdefault(name, []).append(1 - float(self._reached[name].float().mean()))
        self._sums, self._reached = {}, {}

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        return {name: {"norm": self.norms[name], "silent": self.silent[name]} for name in self.norms}
