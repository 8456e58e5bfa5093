"""Models of the experiments, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...models_zoo.torch_models import Step

__all__ = ["ACTIVATIONS", "LifNet", "mlp", "seeded"]


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "ELU": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "Heaviside": Step,
}


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:])):
        layers += [activation()] if i else []
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


class LifNet(nn.Module):
    """Two layers of leaky integrate-and-fire neurons, threshold 1, reset by subtraction, unrolled over time.

    The input is a constant current. Returns spikes [t, n, c].
    """

    beta: Tensor

    def __init__(self, sizes: tuple[int, int, int] = (64, 128, 10), steps: int = 15, beta: float = 0.9) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
        self.steps = steps
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, x: Tensor) -> Tensor:
        u1 = u2 = torch.zeros((), device=x.device)
        outputs = []
        for _ in range(self.steps):
            spikes, u1 = self._fire(self.beta * u1 + self.first(x))
            spikes, u2 = self._fire(self.beta * u2 + self.second(spikes))
            outputs.append(spikes)
        return torch.stack(outputs)

    def _fire(self, u: Tensor) -> tuple[Tensor, Tensor]:
        spikes = (u > 1).to(u.dtype)
        return spikes, u - spikes


def seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """`build` from a seed."""

    def start(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build()

    return start
