"""Training without a backward pass: the slope along one random direction, by two forward passes (SPSA, MeZO)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["zeroth_order"]


def zeroth_order(
    width: float, error: Callable[[Tensor, Tensor], Tensor | float]
) -> Callable[[nn.Module, Tensor, Tensor], None]:
    """A function that sets the gradients of a model by two forward passes on a batch (MeZO, Malladi et al. 2023, algorithm 1).

        p = (error(w + width z) - error(w - width z)) / (2 width),  gradient of w = p z,  z ~ N(0, 1)

    z is never kept: as in the paper, it is drawn again from its seed, which costs four draws in place of memory. The weights
    return to where they were but for rounding.

    Args:
        error: of outputs and labels, to become small.
    """

    @torch.no_grad()
    def gradients(model: nn.Module, x: Tensor, labels: Tensor) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        seed = int(torch.randint(2**62, ()))
        errors = []
        for move in (width, -2 * width):
            for p, z in _directions(parameters, seed):
                p.add_(z, alpha=move)
            outputs = model(x)
            errors.append(error(outputs if isinstance(outputs, Tensor) else outputs.logits, labels))
        slope = float(errors[0] - errors[1]) / (2 * width)
        for p, z in _directions(parameters, seed):
            p.add_(z, alpha=width)
            p.grad = z.mul_(slope)

    return gradients


def _directions(parameters: list[nn.Parameter], seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter and its part of the direction that belongs to a seed."""
    generators = {device: torch.Generator(device).manual_seed(seed) for device in {p.device for p in parameters}}
    for p in parameters:
        yield p, torch.randn(p.shape, generator=generators[p.device], dtype=p.dtype, device=p.device)
