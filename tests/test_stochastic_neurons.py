"""Stochastic binary neurons: ten steps against the paper's equations, layer by layer, and the estimator's mean."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.grad import conv2d_weight

from lfpgraph.comparison import METHODS
from lfpgraph.errors import InputError

from .support.two_layers import TwoLayers

WAYS = ["unbiased", "through-draws", "smooth-draws"]


class _Net(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.bernoulli(torch.sigmoid(self.a(x))).flatten(1))


def _by_hand(model: _Net, x: Tensor, y: Tensor, way: str) -> tuple[Tensor, Tensor]:
    p = torch.sigmoid(model.a(x))
    drawn = torch.bernoulli(p.sqrt() if way == "smooth-draws" else p)
    h = drawn * p.sqrt() if way == "smooth-draws" else drawn
    outputs = model.b(h.flatten(1))
    losses = cross_entropy(outputs, y, reduction="none")
    error = (outputs.softmax(1) - one_hot(y, 3)) / len(y)
    back = (error @ model.b.weight).reshape(h.shape)
    if way == "unbiased":
        error_of = losses.reshape(-1, *[1] * (h.dim() - 1))
        share, rest = (h - p) ** 2, 1 - torch.eye(len(y), dtype=p.dtype)
        baseline = torch.einsum("mn,n...->m...", rest, share * error_of) / torch.einsum("mn,n...->m...", rest, share)
        at = (h - p) * (error_of - baseline) / len(y)
    elif way == "through-draws":
        at = back * p * (1 - p)
    else:
        at = back * drawn * 0.5 * p.sqrt() * (1 - p)
    first = at.T @ x if h.dim() == 2 else conv2d_weight(x, model.a.weight.shape, at)
    return first, error.T @ h.flatten(1)


@pytest.mark.parametrize("convolution", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("way", WAYS)
def test_ten_steps(way: str, convolution: bool) -> None:
    torch.manual_seed(0)
    model, twin = _Net(convolution).double(), _Net(convolution).double()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(7, *((1, 4, 4) if convolution else (6,)), dtype=torch.float64)
    y = torch.randint(3, (7,))
    learner = METHODS[way].learner_of(model, cross_entropy, x)
    for i in range(10):
        torch.manual_seed(i)
        model.zero_grad()
        learner.gradients(x, y)
        torch.manual_seed(i)
        with torch.no_grad():
            moves = _by_hand(twin, x, y, way)
            for p, q, move in zip(model.parameters(), twin.parameters(), moves):
                p -= 0.3 * p.grad
                q -= 0.3 * move
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_its_mean_is_the_gradient_of_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all draws of two samples, each with its chance."""
    torch.manual_seed(0)
    model = _Net(False).double()
    x, y = torch.randn(1, 6, dtype=torch.float64).expand(2, -1), torch.tensor([1, 1])
    p = torch.sigmoid(model.a(x[:1]))
    draws = [torch.tensor([bits], dtype=torch.float64) for bits in itertools.product((0.0, 1.0), repeat=5)]
    chances = [torch.where(h > 0, p, 1 - p).prod() for h in draws]
    mean = sum(c * cross_entropy(model.b(h), y[:1]) for c, h in zip(chances, draws))
    (expected,) = torch.autograd.grad(mean, [model.a.weight])
    learner, total = METHODS["unbiased"].learner_of(model, cross_entropy, x), torch.zeros_like(expected)
    given: list[Any] = []
    monkeypatch.setattr(type(learner), "drawn", lambda self, p, draw: given[0])
    for i, j in itertools.product(range(32), repeat=2):
        h, other = draws[i], draws[j]
        given[:] = [torch.cat([h, other])]
        model.zero_grad()
        learner.gradients(x, y)
        total += float((chances[i] * chances[j]).detach()) * model.a.weight.grad
    torch.testing.assert_close(total, expected)


def test_a_model_without_draws() -> None:
    with pytest.raises(InputError, match="no stochastic neurons"):
        METHODS["unbiased"].learner_of(nn.Linear(3, 2), cross_entropy, None).gradients(
            torch.randn(4, 3), torch.zeros(4).long()
        )
