"""Local learning on an MLP and a CNN: ten steps against the papers' equations in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, linear, one_hot, softplus

from lfpgraph.comparison import forward_only, local
from lfpgraph.comparison.local.goodness import with_labels
from lfpgraph.composites.rivals import fixed_random
from lfpgraph.errors import InputError

from .support.by_hand import CLASSES, assert_same_steps, batches, both, copied, descend, parts, small_model


@both
def test_plain_local_losses(convolutions: bool) -> None:
    """The head behind images sees them averaged to 2 x 2."""
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = local.LocalLosses(model, cross_entropy, next(batches(convolutions))[0])
    blocks = parts(twin, early=True)
    heads = [
        copied(learner.heads[0]),
        copied(blocks[2]),
    ]  # the last block takes what the second makes, so that reads it

    def step(h: Tensor, y: Tensor) -> None:
        for block, head in zip(blocks, [*heads, None]):
            new = block(h)
            out = new
            if head is not None:
                seen = torch.tanh(new) if head is heads[1] else adaptive_avg_pool2d(new, 2) if convolutions else new
                out = linear(seen.flatten(1), *head)
            h = new.detach()
            descend([*block.parameters(), *(head or [])], cross_entropy(out, y))

    assert_same_steps(learner, twin, batches(convolutions), step)


@both
def test_auglocal(convolutions: bool) -> None:
    """Heads: copies of both blocks behind the first and of the one behind the second. A convolution that does not take halved
    images is left out, and an adapter averages the image and mixes its channels."""
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = local.AugLocal(model, cross_entropy, next(batches(convolutions))[0])
    blocks = parts(twin, early=True)
    second, third = copied(blocks[1]), [copied(blocks[2]), copied(blocks[2])]
    mix = copied(learner.heads[0].copies[0].adapter) if convolutions else []  # type: ignore[union-attr,index]

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
            descend([*block.parameters(), *own], cross_entropy(answer(k, new) if k < 2 else new, y))

    assert_same_steps(learner, twin, batches(convolutions), step)


@both
def test_man(convolutions: bool) -> None:
    """The heads' weights follow the next block's, as they were before the step."""
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = local.MomentumAuxiliary(model, cross_entropy, next(batches(convolutions))[0])
    blocks = parts(twin, early=True)
    averages = [[p.detach().clone() for p in block.parameters()] for block in blocks[1:]]
    biases = [head.bias.detach().clone().requires_grad_() for head in learner.heads]  # type: ignore[union-attr,operator]
    last = copied(blocks[2])

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
                out, own = linear(torch.tanh(out).flatten(1), *last), [*own, *last]
            h = new.detach()
            descend([*block.parameters(), *own], cross_entropy(out, y))

    assert_same_steps(learner, twin, batches(convolutions), step)


@both
@pytest.mark.parametrize("way", [local.TargetProjection, local.ForwardGNN])
def test_losses_of_activations(way: Any, convolutions: bool) -> None:
    """tpSGD: the squared distance from a fixed projection of the label. ForwardGNN: products with the means of the classes."""
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = way(model, cross_entropy, next(batches(convolutions))[0])
    blocks = parts(twin, early=False)

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
            descend([*block.parameters()], of(k, new, y) if k < 2 else cross_entropy(new, y))

    assert_same_steps(learner, twin, batches(convolutions), step)


@both
def test_forward_forward(convolutions: bool) -> None:
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = local.ForwardForward(model, cross_entropy, next(batches(convolutions))[0])
    blocks = parts(twin, early=False)

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
            descend(parameters, loss)

    assert_same_steps(learner, twin, batches(convolutions), step)
    x = next(batches(convolutions))[0]
    torch.testing.assert_close(learner.outputs(x), asked(x).detach())


@both
def test_counter_current(convolutions: bool) -> None:
    """The feedback layers are linear, but for images a product over channels behind a change of size."""
    model, twin = small_model(convolutions), small_model(convolutions)
    learner = local.CounterCurrent(model, cross_entropy, next(batches(convolutions))[0])
    blocks = parts(twin, early=False)
    first, second = (copied(layer) for layer in learner.heads)

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
                descend([*block.parameters()], cross_entropy(new, y))
                continue
            a, b = new.flatten(1), signals[k].flatten(1)
            cosines = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1))
            loss = (cosines - one_hot(y, CLASSES)).pow(2).mean()
            descend([*block.parameters(), *(first, second)[k]], loss)

    assert_same_steps(learner, twin, batches(convolutions), step)


def test_refusals() -> None:
    x = torch.randn(8, 36)
    with pytest.raises(InputError, match="no point to cut at"):
        local.LocalLosses(nn.Linear(36, 4), cross_entropy, x)
    with pytest.raises(InputError, match="needs equal blocks"):
        forward_only.NoProp(small_model(False).float(), cross_entropy, x)
    with pytest.raises(InputError, match="into float inputs"):
        with_labels(torch.arange(3), None, 2)
    with pytest.raises(InputError, match="which has 2"):
        with_labels(torch.randn(3, 2), None, 4)


def test_blocks_are_the_model() -> None:
    """Its outputs and statistics, with a mask that crosses a cut, weights made of parameters, another way for small batches."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.scale, self.last = nn.Parameter(torch.rand(6)), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            seen = (x > 0).all(1, keepdim=True)
            before = torch.relu(self.norm(self.a(x)))
            on = before.detach() > 0.5
            h = torch.relu(self.b(before * torch.exp(self.scale))) * torch.exp(self.scale)
            return self.last(self.c(torch.where(on | seen, h, 2 * h))) * (2 if len(x) > 2 else 1)

    torch.manual_seed(0)
    model, twin = Net().double(), Net().double()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(5, 4, dtype=torch.float64)
    blocks = local.Blocks(model, x)
    assert len(blocks) == 3 and [b.late for b in blocks.blocks] == [False, True, False]
    for given in (x, x[:1]):
        model.train(len(given) > 1), twin.train(len(given) > 1)
        blocks = blocks if model.training else local.Blocks(model, x)
        flow = blocks.flow(given)
        for k in range(3):
            found = flow.run(k)
            flow.hand_over(k, found)
        torch.testing.assert_close(found, twin(given))
        torch.testing.assert_close(model.state_dict(), twin.state_dict())
        found.square().sum().backward()
    assert len(blocks.others) == 1
    assert model.c.weight.grad is not None and model.b.weight.grad is None
    with pytest.raises(InputError, match="is no head"):
        local.MomentumAuxiliary(model, cross_entropy, x)


def test_heads_of_models_that_answer_with_images() -> None:
    """A copy of the last block is not given halved images where its answer would then be half as large."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)]
    model, x, y = nn.Sequential(*layers), torch.randn(2, 2, 8, 8), torch.randint(3, (2, 8, 8))
    for way in (local.LocalLosses, local.AugLocal, local.MomentumAuxiliary):
        model.zero_grad()
        way(model, cross_entropy, x).gradients(x, y)
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_heads_of_models_with_tied_weights() -> None:
    """The same weight at both ends, under two names."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4, bias=False)
            self.c.weight = nn.Parameter(torch.randn(4, 6))
            self.d = nn.Linear(4, 6)
            self.d.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))

    torch.manual_seed(0)
    model, x, y = Tied(), torch.randn(5, 4), torch.randint(6, (5,))
    for way in (local.AugLocal, local.MomentumAuxiliary):
        learner = way(model, cross_entropy, x)
        model.zero_grad()
        learner.gradients(x, y)
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
