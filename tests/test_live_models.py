"""Kinds of models that other libraries build, on the live engine: the recorded gradient is autograd's, and LFP is finite."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lfpgraph

from .support.live_models import MODELS
from .support.opinfo import RECORDED


def _step(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_gradient_and_feedback(name: str) -> None:
    torch.manual_seed(0)
    model, loss_of = MODELS[name]()
    model = model.double()
    expected = _step(copy.deepcopy(model), loss_of)
    recorded = lfpgraph.wrap(copy.deepcopy(model), RECORDED, engine="live")
    for _ in range(2):
        found = _step(recorded, loss_of)
        assert set(found) == set(expected)
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=1e-10, atol=1e-12)
    feedback = _step(lfpgraph.wrap(model), loss_of)
    assert set(feedback) == set(expected)
    assert all(bool(f.isfinite().all()) for f in feedback.values())
    assert any(bool(f.any()) for f in feedback.values())


def _adversaries() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    return generator.double(), nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)).double()


def _adversarial_step(generator: nn.Module, critic: nn.Module) -> list[Tensor]:
    """A generator and a critic that learn in turn; the generator learns through the critic."""
    generator.zero_grad()
    critic.zero_grad()
    noise, real = torch.randn(6, 3).double(), torch.randn(6, 4).double()
    fake = generator(noise)
    (F.softplus(-critic(real)) + F.softplus(critic(fake.detach()))).mean().backward()
    found = [p.grad.clone() for p in critic.parameters()]
    critic.zero_grad()
    F.softplus(-critic(fake)).mean().backward()
    return found + [p.grad.clone() for p in generator.parameters()]


def test_two_wrapped_models() -> None:
    torch.manual_seed(1)
    expected = _adversarial_step(*_adversaries())
    torch.manual_seed(1)
    found = _adversarial_step(*(lfpgraph.wrap(m, RECORDED, engine="live") for m in _adversaries()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    feedback = _adversarial_step(*(lfpgraph.wrap(m) for m in _adversaries()))
    assert all(bool(f.isfinite().all()) and bool(f.any()) for f in feedback)


class _Frozen(nn.Module):
    """A head on features that are made under no_grad, or handed in."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return F.relu(self.encoder(x))

    def forward(self, x: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        h = self.features(x) if x is not None else h
        return self.out(torch.sigmoid(self.head(h)) * h)


def test_frozen_features_are_activations() -> None:
    torch.manual_seed(0)
    model, x = _Frozen().double(), torch.randn(5, 6).double()
    inside = _step(lfpgraph.wrap(copy.deepcopy(model)), lambda m: m(x).square().sum())
    handed_in = _step(lfpgraph.wrap(copy.deepcopy(model)), lambda m: m(h=model.features(x)).square().sum())
    torch.testing.assert_close(inside, handed_in)


def test_angles_made_under_no_grad_are_no_activations() -> None:
    """A product with what comes of positions alone hands its whole reward to the other factor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("rates", torch.rand(6))

        def forward(self, x: Tensor, frozen: bool = True) -> Tensor:
            with torch.set_grad_enabled(not frozen):
                angles = (torch.arange(5)[:, None] * self.rates[None]).cos().to(x.dtype)
            return self.b(self.a(x) * angles)

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(5, 6).double()
    found = _step(lfpgraph.wrap(copy.deepcopy(model)), lambda m: m(x).square().sum())
    plain = _step(lfpgraph.wrap(copy.deepcopy(model)), lambda m: m(x, frozen=False).square().sum())
    torch.testing.assert_close(found, plain)


def test_a_zero_weight_where_signals_of_two_forms_meet() -> None:
    """The softmax hands on a signal in stabilized form, the output a plain one; the layer itself holds zeros."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 4)
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x))
            return torch.cat([F.relu(h), h * x[:, :4], h.tanh(), h], -1)

    torch.manual_seed(0)
    model, x = Net(), torch.randn(5, 6)
    weight = torch.randn(16)
    live = _step(lfpgraph.wrap(copy.deepcopy(model), engine="live"), lambda m: (m(x) * weight).sum())
    static = _step(lfpgraph.wrap(copy.deepcopy(model), engine="static"), lambda m: (m(x) * weight).sum())
    assert bool(live["b.weight"].any())
    torch.testing.assert_close(live, static)


class _OtherInEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.second(h.relu() if self.training else h.tanh())
        return out


def test_first_step_in_another_mode_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    """What a call keeps is what calls of its own mode have needed."""
    model = lfpgraph.wrap(_OtherInEval(), engine="live")
    for training in (True, True, True, True, False):
        model.train(training)
        model(torch.randn(2, 3)).sum().backward()
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def _gate(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x @ w) * x.relu()


class _Gated(nn.Module):
    def __init__(self, gate: Callable[..., Tensor]) -> None:
        super().__init__()
        self.gate, self.weight, self.last = gate, nn.Parameter(torch.eye(3, dtype=torch.float64)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.gate(x, self.weight))
        return out


@pytest.mark.filterwarnings("ignore:torch.compile with fullgraph=True found no compiled frames")  # torch 2.12
def test_feedback_through_compiled_functions() -> None:
    """The rules apply to what a compiled function is made of; where nobody records, it stays compiled."""
    found = []
    for gate in (_gate, torch.compile(_gate, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        model = lfpgraph.wrap(_Gated(gate).double(), engine="live")
        found.append(_step(model, lambda model: model(torch.randn(2, 3, dtype=torch.float64)).sum()))
    torch.testing.assert_close(found[1], found[0])
    out = lfpgraph.unwrap(model)(torch.randn(2, 3, dtype=torch.float64))
    assert "CompiledFunction" in out.grad_fn.next_functions[1][0].name()


class _Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h.square().sum() / int((x > 0).sum()) * float(x.abs().mean())


def test_numbers_of_each_call_need_no_new_plan() -> None:
    """A loss divided by how many boxes were found, or weighted by a schedule."""
    model = lfpgraph.wrap(_Annealed(), engine="live")
    for _ in range(4):
        model(torch.randn(4, 3)).backward()
    assert lfpgraph.explain_wrap(model).plans == 1


class Quantised(Tensor):
    """A weight of whole numbers and scales that multiplies as torchao's do."""

    @staticmethod
    def __new__(cls, whole: Tensor, scales: Tensor) -> Quantised:
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scales.dtype)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, whole: Tensor, scales: Tensor) -> None:
        self.whole, self.scales = whole, scales

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].whole, args[0].scales)
        raise NotImplementedError(str(func))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, w = args[:2]
            return x @ w.whole.to(x.dtype).t() * w.scales
        return super().__torch_function__(func, types, args, kwargs or {})


def test_what_a_quantised_weight_is_made_of_is_a_weight() -> None:
    """A layer of it gets the epsilon of a layer, as one whose weights are written out."""
    found = []
    for quantised in (True, False):
        torch.manual_seed(0)
        whole, scales = torch.randint(-9, 9, (6, 6)), torch.rand(6, dtype=torch.float64)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)).double()
        weight = Quantised(whole, scales) if quantised else whole * scales[:, None]
        model[1].weight = nn.Parameter(weight, requires_grad=False)
        epsilon = lfpgraph.get_composite("lfp-epsilon")
        lfpgraph.wrap(model, replace(epsilon, default=replace(epsilon.default, epsilon=0.3)), engine="live")
        model(torch.ones(3, 4, dtype=torch.float64)).sum().backward()
        found.append(model[0].weight.grad)
    torch.testing.assert_close(found[0], found[1])


class Checkpointed(nn.Module):
    """A frozen embedding made to require a gradient, as PEFT does, and a checkpoint of a function with all kinds of rules."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.embed, self.a, self.b, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.embed.weight.requires_grad_(False)
        nn.init.zeros_(self.b.weight)
        self.register_buffer("turn", torch.linspace(-1, 1, 6))

    def part(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.a(x)) * F.gelu(x * self.turn)
        return x + gate * (0.5 + self.b(gate))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).requires_grad_()
        x = self.part(x) if self.reentrant is None else checkpoint(self.part, x, use_reentrant=self.reentrant)
        out: Tensor = self.head(F.layer_norm(x, (6,)))
        return out


def test_checkpoints_of_both_kinds_give_the_feedback_of_none(caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        model = lfpgraph.wrap(Checkpointed(reentrant).double(), "lfp-epsilon", engine="live")
        for _ in range(5):
            model.zero_grad()
            model(torch.arange(7).view(1, 7)).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert all(bool(g.any()) for g in found[0].values())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)
