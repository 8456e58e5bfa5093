"""NoProp, MeZO and evolution strategies on an MLP and a CNN: ten steps against the papers' equations in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lfpgraph.comparison import forward_only
from lfpgraph.comparison.forward_only.noprop import schedule
from lfpgraph.composites.rivals import fixed_random

from .support.by_hand import CLASSES, RATE, assert_same_steps, batches, both, descend, small_model


def _equal(convolutions: bool) -> nn.Sequential:
    torch.manual_seed(0)
    if not convolutions:
        middle = [layer for _ in range(3) for layer in (nn.Linear(12, 12), nn.Tanh())]
        return nn.Sequential(nn.Linear(36, 12), nn.Tanh(), *middle, nn.Linear(12, CLASSES)).double()
    middle = [layer for _ in range(2) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())]
    first = [nn.Conv2d(1, 4, 3), nn.Tanh()]
    return nn.Sequential(*first, *middle, nn.Flatten(), nn.Linear(64, CLASSES)).double()


@both
def test_noprop(convolutions: bool) -> None:
    model, twin = _equal(convolutions), _equal(convolutions)
    learner = forward_only.NoProp(model, cross_entropy, next(batches(convolutions))[0])
    count, width = (2, 4) if convolutions else (3, 12)
    stem, tail = twin[:1], twin[1 + 2 * count :]
    blocks = [twin[1 + 2 * t : 3 + 2 * t] for t in range(count)]
    u = fixed_random(torch.Size([CLASSES, width]), 0, torch.zeros((), dtype=torch.float64)) * math.sqrt(3 * width)
    assert 0.5 < u.square().mean() < 2

    def denoised(t: int, x: Tensor, z: Tensor) -> Tensor:
        return tail(blocks[t](stem(x) + (z[:, :, None, None] if convolutions else z)))

    def step(x: Tensor, y: Tensor) -> None:
        a = schedule(count)
        loss = torch.zeros((), dtype=torch.float64)
        for t in range(count):
            z = a[t] ** 0.5 * u[y] + (1 - a[t]) ** 0.5 * torch.randn(len(y), width, dtype=torch.float64)
            share = a[t + 1] / (1 - a[t + 1]) - a[t] / (1 - a[t])
            loss = loss + share / 2 * ((denoised(t, x, z).softmax(1) @ u - u[y]) ** 2).sum(1).mean()
        descend([*twin.parameters()], loss)

    assert_same_steps(learner, twin, batches(convolutions), step)
    x, a = next(batches(convolutions))[0], schedule(count)
    torch.manual_seed(5)
    found = learner.outputs(x)
    torch.manual_seed(5)
    z = torch.randn(8, width, dtype=torch.float64)
    for t in range(count):  # the posterior of z_t between the label and z_{t-1}, by Bayes
        logits = denoised(t, x, z)
        ratio = a[t] / a[t + 1]
        precision = 1 / (1 - a[t + 1]) + ratio / (1 - ratio)
        mean = (a[t + 1] ** 0.5 * logits.softmax(1) @ u / (1 - a[t + 1]) + ratio**0.5 * z / (1 - ratio)) / precision
        z = mean + torch.randn_like(mean) / precision**0.5
    torch.testing.assert_close(found, logits.detach())


@both
@pytest.mark.parametrize("way", ["mezo", "es"])
def test_forward_passes_alone(way: str, convolutions: bool) -> None:
    """Directions are drawn from their seeds, parameter after parameter; errors become ranks for the strategy."""
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = (forward_only.MeZO if way == "mezo" else forward_only.EvolutionStrategy)(model, cross_entropy, None)
    width, pairs = (1e-3, 1) if way == "mezo" else (0.02, 8)

    @torch.no_grad()
    def step(x: Tensor, y: Tensor) -> None:
        found = []
        for seed in [int(torch.randint(2**62, ())) for _ in range(pairs)]:
            generator = torch.Generator().manual_seed(seed)
            z = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in twin.named_parameters()}
            moved = [{n: p + sign * width * z[n] for n, p in twin.named_parameters()} for sign in (1, -1)]
            found.append((z, [float(cross_entropy(torch.func.functional_call(twin, w, (x,)), y)) for w in moved]))
        if way == "es":
            order = sorted(e for _, errors in found for e in errors)
            found = [(z, [order.index(e) / (2 * pairs - 1) - 0.5 for e in errors]) for z, errors in found]
        for name, p in twin.named_parameters():
            p -= RATE * sum((a - b) / (2 * width * pairs) * z[name] for z, (a, b) in found)

    assert_same_steps(learner, twin, batches(convolutions), step)


def test_both_sides_draw_the_same() -> None:
    """Dropout of other places on each side would drown the slope; what is drawn afterwards is as if nothing had been."""
    torch.manual_seed(0)
    model, x, y = (
        nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 3)).double(),
        torch.randn(4, 50).double(),
        torch.arange(4) % 3,
    )
    learner = forward_only.MeZO(model, cross_entropy, None)
    state = torch.get_rng_state()
    learner.gradients(x, y)
    torch.randint(2**62, ())
    after = torch.rand(1)
    torch.set_rng_state(state)
    torch.randint(2**62, ()), torch.randint(2**62, ())
    assert torch.equal(torch.rand(1), after)
    weight = model[1].weight.grad
    assert weight is not None and weight.abs().max() < 20  # a slope over two masks would be of the order of 1 / width
