"""Spiking networks for tests, in plain torch, written in several ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Spiking"]


class Spiking(nn.Module):
    """Two layers of LIF neurons over `steps`; returns spikes [t, n, c], or their number [n, c] if `count`.

    `reset` names how it is written: "subtract" and "zero" right after a spike; "where" is "zero" with a shared
    comparison; "later" and "later-zero" reset in the next step, as snntorch does; "none".
    """

    def __init__(
        self, sizes: tuple[int, int, int] = (6, 8, 3), steps: int = 4, beta: float = 0.9, reset: str = "subtract",
        count: bool = False, recurrent: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.second = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.back = nn.Linear(sizes[1], sizes[1]) if recurrent else None
        self.steps, self.beta, self.reset, self.count = steps, beta, reset, count

    def forward(self, x: Tensor) -> Tensor:
        u1 = u2 = fired = torch.zeros((), dtype=x.dtype)
        outputs: list[Tensor] = []
        total = torch.zeros((), dtype=x.dtype)
        for t in range(self.steps):
            current = self.first(x)
            if self.back is not None and t:
                current = current + self.back(fired)
            fired, u1 = self._neuron(u1, current)
            spikes, u2 = self._neuron(u2, self.second(fired))
            if self.count:
                total = total + spikes
            else:
                outputs.append(spikes)
        return total if self.count else torch.stack(outputs)

    def _neuron(self, u: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        if self.reset == "later":
            u = self.beta * u + current - (u > 1).to(u.dtype).detach()
            return (u > 1).to(u.dtype), u
        if self.reset == "later-zero":
            u = self.beta * ((1 - (u > 1).to(u.dtype).detach()) * u) + current
            return (u > 1).to(u.dtype), u
        u = self.beta * u + current
        over = u > 1
        spikes = over.to(u.dtype)
        if self.reset == "subtract":
            return spikes, u - spikes
        if self.reset == "zero":
            return spikes, u * (1 - spikes)
        if self.reset == "where":
            return spikes, torch.where(over, torch.zeros_like(u), u)
        return spikes, u
