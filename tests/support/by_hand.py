"""Ways of training beside the same written by hand, on an MLP and a CNN, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lfpgraph.comparison import Learner

__all__ = ["CLASSES", "RATE", "assert_same_steps", "batches", "both", "copied", "descend", "parts", "small_model"]

RATE, CLASSES, STEPS = 0.1, 4, 10
Twin = list[nn.Sequential]
both = pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])


def small_model(convolutions: bool) -> nn.Sequential:
    torch.manual_seed(0)
    if not convolutions:
        return nn.Sequential(nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, CLASSES)).double()
    first = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(20, CLASSES)).double()


def parts(model: nn.Sequential, early: bool) -> Twin:
    """The model in three blocks that each have a layer; the cut is before or behind the activations."""
    starts = [0, 1, 3, len(model)] if early else [0, 2, 4, len(model)]
    return [model[a:b] for a, b in zip(starts, starts[1:])]


def batches(convolutions: bool, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(8, *((1, 6, 6) if convolutions else (36,)), dtype=torch.float64, generator=generator)
        yield x, torch.randint(CLASSES, (8,), generator=generator)


def descend(parameters: list[Tensor], loss: Tensor) -> None:
    """Gradient descent of a loss on some parameters."""
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.data -= RATE * g


def assert_same_steps(
    learner: Learner, twin: nn.Module, steps: Iterator[tuple[Tensor, Tensor]], by_hand: Callable[[Tensor, Tensor], None]
) -> None:
    """Ten steps of SGD on what the learner gives, and ten by hand, with the same random draws."""
    before = [p.clone() for p in twin.parameters()]
    for i, (x, y) in enumerate(steps):
        parameters = [*learner.model.parameters(), *learner.more_parameters()]
        for p in parameters:
            p.grad = None
        torch.manual_seed(i)
        learner.gradients(x, y)
        for p in parameters:
            p.data -= RATE * p.grad
        torch.manual_seed(i)
        by_hand(x, y)
    for p, q, old in zip(learner.model.parameters(), twin.parameters(), before):
        assert (p - old).norm() > 1e-3
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def copied(*modules: nn.Module) -> list[Tensor]:
    """The parameters of modules, as new ones."""
    return [p.detach().clone().requires_grad_() for m in modules for p in m.parameters()]
