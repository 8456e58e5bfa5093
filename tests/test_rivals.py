"""The rivals of feedback on the same engine: against autograd written by hand; memory of sltt in bytes."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.comparison.memory import LiveBytes
from lfpgraph.composites.rivals import fixed_random, rival
from lfpgraph.errors import CompositeError, RuleError

from .support.helpers import assert_same, gradients
from .support.helpers import lfp as wrapped_gradients
from .support.spiking_models import Spiking


class _Step(torch.autograd.Function):
    """A spike with snntorch's arctangent surrogate (alpha 2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] / (1 + (torch.pi * x) ** 2)


class _ByHand(Spiking):
    """The twin with surrogate gradients written out: the reset detached, and for sltt the membrane's past too."""

    past = True

    def _neuron(self, u: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        u = self.beta * (u if self.past else u.detach()) + current
        spikes = _Step.apply(u - 1)
        return spikes, u - spikes.detach()


def _models(**options: Any) -> tuple[Spiking, _ByHand, Tensor]:
    torch.manual_seed(3)
    model = Spiking(**options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(0.2)
    twin = _ByHand(**options).double()
    twin.load_state_dict(model.state_dict())
    x = torch.rand(7, 6, dtype=torch.float64)
    assert torch.equal(model(x), twin(x)) and 0.1 < model(x).mean() < 0.95 * (model.steps if model.count else 1)
    return model, twin, x


def test_surrogate_is_backprop_through_time() -> None:
    model, twin, x = _models()
    assert_same(wrapped_gradients(model, x, composite="surrogate"), gradients(twin, x), 1e-9)


@pytest.mark.parametrize("count", [False, True])
def test_sltt_is_backprop_without_time(count: bool) -> None:
    model, twin, x = _models(count=count)
    twin.past = False
    expected = gradients(twin, x)
    twin.past = True
    assert any((expected[k] - v).norm() > 0.01 * v.norm() for k, v in gradients(twin, x).items())
    assert_same(wrapped_gradients(model, x, composite="sltt"), expected, 1e-9)


def _peak(composite: str, steps: int) -> int:
    model = lfpgraph.wrap(Spiking((16, 64, 10), steps, count=True), composite)
    x = torch.rand(32, 16)
    model(x).sum().backward()
    model.zero_grad(set_to_none=True)
    with LiveBytes() as live:
        model(x).sum().backward()
    return live.peak


def test_memory_of_sltt_does_not_grow_with_steps() -> None:
    assert _peak("sltt", 12) == _peak("sltt", 4)
    assert _peak("surrogate", 12) > 2 * _peak("surrogate", 4)


def test_sltt_keeps_random_draws() -> None:
    """What forward drew is kept, not drawn again: the second forward of `online` is the first."""

    class Noisy(Spiking):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    torch.manual_seed(0)
    model = Noisy(count=True).double()
    x = torch.rand(7, 6, dtype=torch.float64)
    online = wrapped_gradients(model, x, composite="sltt")
    assert_same(wrapped_gradients(model, x, composite=rival("kept", through_time=False)), online, 1e-12)


def test_straight_through() -> None:
    class Net(nn.Module):
        def __init__(self, through: bool) -> None:
            super().__init__()
            self.a, self.b, self.through = nn.Linear(4, 6), nn.Linear(6, 3), through

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = self._pass(torch.sign(h), 2 * h)
            h = self._pass(torch.round(3 * h) / 3, h)
            return self.b(self._pass((h > 0.1).to(h.dtype), h))

        def _pass(self, z: Tensor, x: Tensor) -> Tensor:
            return z.detach() + x - x.detach() if self.through else z

    torch.manual_seed(0)
    x, plain = torch.randn(5, 4, dtype=torch.float64), Net(False).double()
    twin = Net(True).double()
    twin.load_state_dict(plain.state_dict())
    assert_same(wrapped_gradients(plain, x, composite="straight-through"), gradients(twin, x), 1e-9)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def _by_hand(model: _Mlp, x: Tensor, y: Tensor, way: str) -> dict[str, Tensor]:
    """Gradients of summed cross-entropy with other ways back, layer by layer."""
    h1 = torch.tanh(model.a(x))
    h2 = torch.tanh(model.b(h1))
    error = model.c(h2).softmax(1) - nn.functional.one_hot(y, 3)
    keys = {name: zlib.crc32(f"{name}.weight".encode()) for name in "bc"}
    back = lambda name, e, *shape: e @ fixed_random(torch.Size(shape), keys[name], x)  # noqa: E731
    target = nn.functional.one_hot(y, 3).to(x) / len(x)
    if way == "feedback-alignment":
        to2 = back("c", error, 3, 5)
        at2 = to2 * (1 - h2**2)
        to1 = back("b", at2, 5, 6)
    else:
        given = error if way == "direct-feedback-alignment" else -target
        to2, to1 = back("c", given, 3, 5), back("b", given, 3, 6)
        at2 = to2 * (1 - h2**2)
    at1 = to1 * (1 - h1**2)
    found = {}
    for name, at, h in (("a", at1, x), ("b", at2, h1), ("c", error, h2)):
        found |= {f"{name}.weight": at.T @ h, f"{name}.bias": at.sum(0)}
    return {name: g.detach() for name, g in found.items()}


@pytest.mark.parametrize("way", ["feedback-alignment", "direct-feedback-alignment", "drtp"])
def test_random_ways_back(way: str) -> None:
    torch.manual_seed(0)
    model, x, y = _Mlp().double(), torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))
    expected = _by_hand(model, x, y, way)
    lfpgraph.wrap(model, way)
    nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    assert_same({name: p.grad for name, p in model.named_parameters()}, expected, 1e-9)
    lfpgraph.unwrap(model)
    reward = lambda o: lfpgraph.rewards.Softmax()(o, y)  # noqa: E731
    found = lfpgraph.feedback(model, x, reward, way)
    assert_same({name: -found[name] for name in expected}, expected, 1e-5)


def test_fixed_random_is_fixed_and_random() -> None:
    like = torch.zeros((), dtype=torch.float64)
    first = fixed_random(torch.Size([200, 300]), 5, like)
    assert torch.equal(first, fixed_random(torch.Size([200, 300]), 5, like))
    assert (first - fixed_random(torch.Size([200, 300]), 6, like)).abs().mean() > 0.01
    bound = 300**-0.5
    assert first.abs().max() <= bound and abs(first.mean()) < 0.01 * bound
    assert abs(first.std() / bound * 3**0.5 - 1) < 0.01
    assert abs(torch.corrcoef(first)[0, 1:]).mean() < 0.1


def test_direct_feedback_says_what_it_cannot_reach() -> None:
    layers = [nn.Flatten(0, 1), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Unflatten(0, (3, 4)), nn.Flatten(1)]
    with pytest.raises(RuleError, match="cannot be projected"):
        lfpgraph.feedback(nn.Sequential(*layers), torch.randn(3, 4, 4), torch.ones(3, 8), "drtp")


@pytest.mark.parametrize("options", [{"surrogate": "cosine"}, {"weights": "none"}])
def test_unknown_choices(options: dict[str, str]) -> None:
    with pytest.raises(CompositeError, match="choose one of"):
        rival("mine", **options)  # type: ignore[arg-type]


def test_direct_feedback_where_time_comes_first() -> None:
    """An LSTM's activations [t, n, d]: the projection of the output's signal at every time."""
    torch.manual_seed(0)
    rnn, head, first = nn.LSTM(4, 5).double(), nn.Linear(5, 3).double(), nn.Linear(2, 4).double()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn, self.head = first, rnn, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.first(x))[0].mean(0))

    x, y = torch.randn(6, 8, 2, dtype=torch.float64), torch.randint(3, (8,))
    model = lfpgraph.wrap(Net(), "direct-feedback-alignment")
    outputs = model(x)
    nn.functional.cross_entropy(outputs, y).backward()
    error = (outputs.softmax(1) - nn.functional.one_hot(y, 3)) / 8
    # at every time the signal of an activation is B^T e, for one B: so both gradients are B^T times what is known
    known = torch.cat([error.T @ x.sum(0), 6 * error.T.sum(1, keepdim=True)], 1).detach()
    found = torch.cat([first.weight.grad, first.bias.grad[:, None]], 1)
    nothing = torch.linalg.svd(known).Vh[-1]  # errors of a sample sum to zero, so there is a combination that vanishes
    assert (known @ nothing).norm() < 1e-9 < (known @ torch.ones_like(nothing)).norm()
    assert (found @ nothing).norm() < 1e-9 < found.norm()
