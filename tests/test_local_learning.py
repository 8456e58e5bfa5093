"""Local learning, NoProp and evolution strategies on an MLP and a CNN: ten steps against the papers' equations in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, linear, one_hot, softplus

from lfpgraph.comparison import Learner, forward_only, local
from lfpgraph.comparison.forward_only.noprop import schedule
from lfpgraph.comparison.local.goodness import with_labels
from lfpgraph.composites.rivals import fixed_random
from lfpgraph.errors import InputError

RATE, CLASSES, STEPS = 0.1, 4, 10
Twin = list[nn.Sequential]
both = pytest.mark.parametrize("convolutions", [False, True], ids=["mlp", "cnn"])


def _model(convolutions: bool) -> nn.Sequential:
    torch.manual_seed(0)
    if not convolutions:
        return nn.Sequential(nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, CLASSES)).double()
    first = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(20, CLASSES)).double()


def _parts(model: nn.Sequential, early: bool) -> Twin:
    """The model in three blocks that each have a layer; the cut is before or behind the activations."""
    starts = [0, 1, 3, len(model)] if early else [0, 2, 4, len(model)]
    return [model[a:b] for a, b in zip(starts, starts[1:])]


def _data(convolutions: bool, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(8, *((1, 6, 6) if convolutions else (36,)), dtype=torch.float64, generator=generator)
        yield x, torch.randint(CLASSES, (8,), generator=generator)


def _move(parameters: list[Tensor], loss: Tensor) -> None:
    """Gradient descent of a loss on some parameters."""
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
        p.data -= RATE * g


def _compared(
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


def _flat(x: Tensor, module: Any) -> Tensor:
    return linear(x.flatten(1), module.linear.weight, module.linear.bias)


def _copied(*modules: nn.Module) -> list[Tensor]:
    """The parameters of modules, as new ones."""
    return [p.detach().clone().requires_grad_() for m in modules for p in m.parameters()]


@both
def test_plain_local_losses(convolutions: bool) -> None:
    model, twin = _model(convolutions), _model(convolutions)
    learner = local.LocalLosses(model, cross_entropy, next(_data(convolutions))[0])
    heads = [_copied(head) for head in learner.heads]
    blocks = _parts(twin, early=True)

    def step(h: Tensor, y: Tensor) -> None:
        for block, head in zip(blocks, [*heads, None]):
            new = block(h)
            out = new if head is None else linear(new.flatten(1), *head)
            h = new.detach()
            _move([*block.parameters(), *(head or [])], cross_entropy(out, y))

    _compared(learner, twin, _data(convolutions), step)


@both
def test_auglocal(convolutions: bool) -> None:
    """Heads: copies of both blocks behind the first and of the one behind the second. A convolution that does not take halved
    images is left out, and an adapter averages the image and mixes its channels."""
    model, twin = _model(convolutions), _model(convolutions)
    learner = local.AugLocal(model, cross_entropy, next(_data(convolutions))[0])
    blocks = _parts(twin, early=True)
    second, third = _copied(blocks[1]), [_copied(blocks[2]), _copied(blocks[2])]
    mix = _copied(learner.heads[0].copies[0].adapter) if convolutions else []  # type: ignore[union-attr,index]

    def answer(k: int, h: Tensor) -> Tensor:
        if k == 0 and convolutions:
            h = torch.einsum("nchw,dc->ndhw", adaptive_avg_pool2d(h, 2), mix[0]) + mix[1][:, None, None]
        elif k == 0:
            h = linear(torch.tanh(h), *second)
        return linear(torch.tanh(h).flatten(1), *third[k])

    def step(h: Tensor, y: Tensor) -> None:
        for k, block in enumerate(blocks):
            new = block(h)
            own = [*third[k], *((mix or second) if k == 0 else [])] if k < 2 else []
            h = new.detach()
            _move([*block.parameters(), *own], cross_entropy(answer(k, new) if k < 2 else new, y))

    _compared(learner, twin, _data(convolutions), step)


@both
def test_man(convolutions: bool) -> None:
    """The heads' weights follow the next block's, as they were before the step."""
    model, twin = _model(convolutions), _model(convolutions)
    learner = local.MomentumAuxiliary(model, cross_entropy, next(_data(convolutions))[0])
    blocks = _parts(twin, early=True)
    averages = [[p.detach().clone() for p in block.parameters()] for block in blocks[1:]]
    biases = [head.bias.detach().clone().requires_grad_() for head in learner.heads]  # type: ignore[union-attr,operator]
    last = _copied(learner.heads[0].last)  # type: ignore[arg-type]

    def step(h: Tensor, y: Tensor) -> None:
        for average, block in zip(averages, blocks[1:]):
            for v, w in zip(average, block.parameters()):
                v.copy_(0.995 * v + 0.005 * w.detach())
        for k, block in enumerate(blocks):
            new = block(h)
            out, own = new, []
            if k < 2:
                out = torch.func.functional_call(
                    blocks[k + 1], dict(zip(dict(blocks[k + 1].named_parameters()), averages[k])), (new,)
                )
                out, own = out + biases[k], [biases[k]]
            if k == 0:
                out, own = linear(out.flatten(1), *last), [*own, *last]
            h = new.detach()
            _move([*block.parameters(), *own], cross_entropy(out, y))

    _compared(learner, twin, _data(convolutions), step)


@both
@pytest.mark.parametrize("way", [local.TargetProjection, local.ForwardGNN])
def test_losses_of_activations(way: Any, convolutions: bool) -> None:
    """tpSGD: the squared distance from a fixed projection of the label. ForwardGNN: products with the means of the classes."""
    model, twin = _model(convolutions), _model(convolutions)
    learner = way(model, cross_entropy, next(_data(convolutions))[0])
    blocks = _parts(twin, early=False)

    def of(k: int, h: Tensor, y: Tensor) -> Tensor:
        h = h.flatten(1)
        if way is local.TargetProjection:
            target = one_hot(y, CLASSES).double() @ fixed_random(torch.Size([h.shape[1], CLASSES]), k, h).mT
            return ((target - h) ** 2).sum() / len(y)
        present = sorted(set(y.tolist()))
        centres = torch.stack([h[y == c].mean(0) for c in present])
        return cross_entropy(h @ centres.mT, torch.tensor([present.index(c) for c in y.tolist()]))

    def step(h: Tensor, y: Tensor) -> None:
        for k, block in enumerate(blocks):
            new = block(h)
            h = new.detach()
            _move([*block.parameters()], of(k, new, y) if k < 2 else cross_entropy(new, y))

    _compared(learner, twin, _data(convolutions), step)


@both
def test_forward_forward(convolutions: bool) -> None:
    model, twin = _model(convolutions), _model(convolutions)
    learner = local.ForwardForward(model, cross_entropy, next(_data(convolutions))[0])
    blocks = _parts(twin, early=False)

    def marked(x: Tensor, y: Tensor | None) -> Tensor:
        flat = x.flatten(1).clone()
        flat[:, :CLASSES] = 0.25 if y is None else one_hot(y, CLASSES).double()
        return flat.reshape(x.shape)

    def normal(h: Tensor) -> Tensor:
        rms = h.flatten(1).pow(2).mean(1).sqrt().add(1e-8)
        return (h.flatten(1) / rms[:, None]).reshape(h.shape)

    def asked(x: Tensor) -> Tensor:
        with torch.no_grad():
            h = marked(x, None)
            for block in blocks[:-1]:
                h = normal(block(h))
        return blocks[-1](h)

    def step(x: Tensor, y: Tensor) -> None:
        wrong = (y + torch.randint(1, CLASSES, y.shape)) % CLASSES
        good, bad = marked(x, y), marked(x, wrong)
        learnt = list[tuple[list[Tensor], Tensor]]()
        for block in blocks[:-1]:
            a, b = block(good), block(bad)
            goodness = [h.flatten(1).pow(2).mean(1) for h in (a, b)]
            loss = softplus(2 - goodness[0]).mean() + softplus(goodness[1] - 2).mean()
            learnt.append(([*block.parameters()], loss))
            good, bad = normal(a.detach()), normal(b.detach())
        learnt.append(([*blocks[-1].parameters()], cross_entropy(asked(x), y)))
        for parameters, loss in learnt:
            _move(parameters, loss)

    _compared(learner, twin, _data(convolutions), step)
    x = next(_data(convolutions))[0]
    torch.testing.assert_close(learner.outputs(x), asked(x).detach())


@both
def test_counter_current(convolutions: bool) -> None:
    """The feedback layers are linear, but for images a product over channels behind a change of size."""
    model, twin = _model(convolutions), _model(convolutions)
    learner = local.CounterCurrent(model, cross_entropy, next(_data(convolutions))[0])
    blocks = _parts(twin, early=False)
    first, second = (_copied(layer) for layer in learner.heads)

    def feedback() -> tuple[Tensor, Tensor]:
        top = torch.relu(linear(torch.eye(CLASSES, dtype=torch.float64), *second))
        below = top.detach()
        if convolutions:
            top = top.reshape(CLASSES, 5, 2, 2)
            grown = top.detach().repeat_interleave(2, 2).repeat_interleave(2, 3)
            return torch.relu(torch.einsum("nchw,dc->ndhw", grown, first[0]) + first[1][:, None, None]), top
        return torch.relu(linear(below, *first)), top

    def step(h: Tensor, y: Tensor) -> None:
        signals = feedback()
        for k, block in enumerate(blocks):
            new = block(h)
            h = new.detach()
            if k == 2:
                _move([*block.parameters()], cross_entropy(new, y))
                continue
            a, b = new.flatten(1), signals[k].flatten(1)
            cosines = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1))
            loss = (cosines - one_hot(y, CLASSES)).pow(2).mean()
            _move([*block.parameters(), *(first, second)[k]], loss)

    _compared(learner, twin, _data(convolutions), step)


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
    learner = forward_only.NoProp(model, cross_entropy, next(_data(convolutions))[0])
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
        _move([*twin.parameters()], loss)

    _compared(learner, twin, _data(convolutions), step)
    x, a = next(_data(convolutions))[0], schedule(count)
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
    model, twin = _model(convolutions), _model(convolutions)
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

    _compared(learner, twin, _data(convolutions), step)


def test_refusals() -> None:
    x = torch.randn(8, 36)
    with pytest.raises(InputError, match="no point to cut at"):
        local.LocalLosses(nn.Linear(36, 4), cross_entropy, x)
    with pytest.raises(InputError, match="needs equal blocks"):
        forward_only.NoProp(_model(False).float(), cross_entropy, x)
    with pytest.raises(InputError, match="into float inputs"):
        with_labels(torch.arange(3), None, 2)
    with pytest.raises(InputError, match="which has 2"):
        with_labels(torch.randn(3, 2), None, 4)
