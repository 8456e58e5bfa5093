"""Training by forward passes alone: slopes along random directions (SPSA, MeZO, evolution strategies)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..learners import Learner, Loss, output_of

__all__ = ["EvolutionStrategy", "MeZO", "evolution", "zeroth_order"]

Gradients = Callable[[nn.Module, Any, Tensor], None]
Error = Callable[[Tensor, Tensor], Tensor | float]


def zeroth_order(width: float, error: Error) -> Gradients:
    """A function that sets the gradients of a model by two forward passes on a batch (MeZO, Malladi et al. 2023, algorithm 1).

        p = (error(w + width z) - error(w - width z)) / (2 width),  gradient of w = p z,  z ~ N(0, 1)

    z is never kept: as in the paper, it is drawn again from its seed, which costs four draws in place of memory. The weights
    return to where they were but for rounding.

    Args:
        error: of outputs and labels, to become small.
    """

    @torch.no_grad()
    def gradients(model: nn.Module, inputs: Any, labels: Tensor) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        seed = _seed()
        above, below = _both_sides(model, parameters, seed, width, error, inputs, labels)
        slope = (above - below) / (2 * width)
        for p, z in _directions(parameters, seed):
            p.grad = z.mul_(slope)

    return gradients


def evolution(width: float, pairs: int, error: Error) -> Gradients:
    """A function that sets gradients by an evolution strategy with mirrored directions (Salimans et al. 2017, algorithm 1).

        gradient of w = 1 / (2 n width) sum_i (u(w + width z_i) - u(w - width z_i)) z_i,  z_i ~ N(0, 1),  i = 1 ... n

    u is the rank of an error among all 2 n, from -1/2 for the least to 1/2 for the greatest, as in the paper (section 2.1): so
    the size of the error does not matter. Directions are drawn again from their seeds, none is kept.

    Args:
        pairs: n, how many directions; each costs two forward passes.
        error: of outputs and labels, to become small.
    """

    @torch.no_grad()
    def gradients(model: nn.Module, inputs: Any, labels: Tensor) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        seeds = [_seed() for _ in range(pairs)]
        errors = [_both_sides(model, parameters, seed, width, error, inputs, labels) for seed in seeds]
        ranks = _ranks(torch.tensor(errors, dtype=torch.float64))
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for seed, (above, below) in zip(seeds, ranks.tolist()):
            for p, z in _directions(parameters, seed):
                assert p.grad is not None
                p.grad.add_(z, alpha=(above - below) / (2 * pairs * width))

    return gradients


def _ranks(errors: Tensor) -> Tensor:
    """Of each error [n, 2], its rank among all, from -1/2 to 1/2."""
    flat = errors.flatten()
    places = torch.empty_like(flat)
    places[flat.argsort(stable=True)] = torch.arange(len(flat), dtype=flat.dtype)
    return (places / (len(flat) - 1) - 0.5).reshape(errors.shape)


def _seed() -> int:
    return int(torch.randint(2**62, ()))


def _both_sides(
    model: nn.Module, parameters: list[nn.Parameter], seed: int, width: float, error: Error, inputs: Any, labels: Tensor
) -> tuple[float, float]:
    """The errors a step of `width` along the direction and against it, where the model draws the same random numbers.

    The weights end where they were.
    """
    errors, devices = [], [d for d in {p.device for p in parameters} if d.type == "cuda"]
    for move in (width, -2 * width):
        for p, z in _directions(parameters, seed):
            p.add_(z, alpha=move)
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            errors.append(float(error(output_of(model, inputs), labels)))
    for p, z in _directions(parameters, seed):
        p.add_(z, alpha=width)
    return errors[0], errors[1]


def _directions(parameters: list[nn.Parameter], seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter and its part of the direction that belongs to a seed."""
    generators = {device: torch.Generator(device).manual_seed(seed) for device in {p.device for p in parameters}}
    for p in parameters:
        yield p, torch.randn(p.shape, generator=generators[p.device], dtype=p.dtype, device=p.device)


class MeZO(Learner):
    """`zeroth_order` along one direction a step."""

    def __init__(self, model: nn.Module, loss: Loss, inputs: Any, width: float = 1e-3) -> None:
        super().__init__(model, loss, inputs)
        self._gradients = zeroth_order(width, loss)

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        self._gradients(self.model, inputs, labels)


class EvolutionStrategy(Learner):
    """`evolution` with eight mirrored directions a step."""

    def __init__(self, model: nn.Module, loss: Loss, inputs: Any, width: float = 0.02, pairs: int = 8) -> None:
        super().__init__(model, loss, inputs)
        self._gradients = evolution(width, pairs, loss)

    def gradients(self, inputs: Any, labels: Tensor) -> None:
        self._gradients(self.model, inputs, labels)
