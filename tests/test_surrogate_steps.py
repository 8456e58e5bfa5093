"""Surrogate gradients, straight-through and SLTT on an MLP and a CNN of spiking neurons: ten steps by the equations, by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.grad import conv2d_weight

import lfpgraph

from .support.two_layers import TwoLayers

RATE, BETA, TIMES = 0.3, 0.9, 4


class _Net(TwoLayers):
    """One layer of leaky neurons over four steps, and a linear readout that sums."""

    def forward(self, x: Tensor) -> Tensor:
        u, outputs = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
        for _ in range(TIMES):
            u = BETA * u + self.a(x)
            spikes = (u > 1).to(x.dtype)
            outputs = outputs + self.b(spikes.flatten(1))
            u = u - spikes
        return outputs


def _by_hand(
    model: _Net, x: Tensor, y: Tensor, way: str, kept: tuple[int, ...] = tuple(range(TIMES))
) -> tuple[Tensor, Tensor]:
    """du_t = ds_t f'(u_t - 1) + beta du_{t+1}; the last term is what SLTT leaves out."""
    u, outputs, seen = torch.zeros(()), torch.zeros(()), []
    for _ in range(TIMES):
        u = BETA * u + model.a(x)
        spikes = (u > 1).double()
        seen.append((u, spikes))
        outputs = outputs + model.b(spikes.flatten(1))
        u = u - spikes
    error = (outputs.softmax(1) - one_hot(y, 3)) / len(y)
    first, second, later = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for t, (u, spikes) in reversed(list(enumerate(seen))):
        slope = torch.ones_like(u) if way == "straight-through" else 1 / (1 + (torch.pi * (u - 1)) ** 2)
        at = (error @ model.b.weight).reshape(u.shape) * slope
        at = at * (t in kept) if way == "sltt" else at + BETA * later
        first = first + (at.T @ x if u.dim() == 2 else conv2d_weight(x, model.a.weight.shape, at))
        second = second + error.T @ spikes.flatten(1)
        later = at
    return first, second


@pytest.mark.parametrize("convolution", [False, True], ids=["mlp", "cnn"])
@pytest.mark.parametrize("way", ["surrogate", "straight-through", "sltt"])
def test_ten_steps(way: str, convolution: bool) -> None:
    torch.manual_seed(0)
    model, twin = _Net(convolution).double(), _Net(convolution).double()
    twin.load_state_dict(model.state_dict())
    before = [p.detach().clone() for p in model.parameters()]
    x = 2 * torch.randn(7, *((1, 4, 4) if convolution else (6,)), dtype=torch.float64)
    y = torch.randint(3, (7,))
    lfpgraph.wrap(model, way)
    for _ in range(10):
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            moves = _by_hand(twin, x, y, way)
            for p, q, move in zip(model.parameters(), twin.parameters(), moves):
                assert p.grad is not None
                p -= RATE * p.grad
                q -= RATE * move
    for p, q, old in zip(model.parameters(), twin.parameters(), before):
        assert (p - old).norm() > 0.01
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("convolution", [False, True], ids=["mlp", "cnn"])
def test_sltt_k_takes_two_steps_of_time(convolution: bool) -> None:
    """Ten steps along the gradient of two of the four steps of time, other ones for other batches."""
    torch.manual_seed(0)
    model, drawn = _Net(convolution).double(), set()
    twin = _Net(convolution).double()
    twin.load_state_dict(model.state_dict())
    lfpgraph.wrap(model, "sltt-k")
    for _ in range(10):
        x = 2 * torch.randn(7, *((1, 4, 4) if convolution else (6,)), dtype=torch.float64)
        y = torch.randint(3, (7,))
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        ways = {}
        for pair in itertools.combinations(range(TIMES), 2):
            with torch.no_grad():
                ways[pair] = _by_hand(twin, x, y, "sltt", pair)
        assert model.a.weight.grad is not None
        near = [pair for pair, (first, _) in ways.items() if torch.allclose(first, model.a.weight.grad, rtol=1e-6)]
        assert len(near) == 1
        drawn.add(near[0])
        with torch.no_grad():
            for p, q, move in zip(model.parameters(), twin.parameters(), ways[near[0]]):
                assert p.grad is not None
                p -= RATE * p.grad
                q -= RATE * move
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    assert len(drawn) > 1
