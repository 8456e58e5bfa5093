"""Weights in odd places: taken away between forward and feedback (DeepSpeed, FSDP), given as inputs, found in containers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import lfpgraph
from lfpgraph.errors import TraceError, WrapError


class Linear(torch.autograd.Function):
    """A linear layer with a backward of its own, whose weights need be there only while it runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, *signals: Any) -> Any:
        x, w = ctx.saved_tensors
        return signals[0] @ w, signals[0].t() @ x


class Nothing(torch.autograd.Function):
    """Hands on what it is given, and lets something happen before its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Any) -> Tensor:
        ctx.first = first
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *signals: Any) -> Any:
        ctx.first()
        return signals[0], None


class Away(nn.Module):
    """Two layers; as far as asked for, their weights have no memory between forward and backward."""

    def __init__(self, away: bool, back: bool = True, double: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = (
            nn.Parameter(torch.randn(5, 5, generator=generator, dtype=torch.float64)) for _ in range(2)
        )
        self.away, self.back, self.double = away, back, double
        self.kept = [p.data for p in self.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        weights = list(self.parameters())
        for p, data in zip(weights, self.kept):
            p.data = data
        x = Nothing.apply(x, lambda: None)
        h = Linear.apply(x * 2 if self.double else x, self.first)
        out = Linear.apply(torch.tanh(h), self.second)
        if self.away:
            for p in weights:
                p.data = p.data.new_empty(0)
        return Nothing.apply(out, self.restore)

    def restore(self) -> None:
        if self.back:
            for p, data in zip(self.parameters(), self.kept):
                p.data = data


def feedback(model: nn.Module, x: Tensor, composite: str = "lfp") -> list[Tensor]:
    """The feedback of two equal calls of a wrapped model, the first of which plans."""
    wrapped = lfpgraph.wrap(model, composite, engine="live")
    (wrapped(x) ** 2).sum().backward()
    (wrapped(x) ** 2).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_without_memory_until_the_feedback(zero: bool, double: bool) -> None:
    models = [Away(away, double=double) for away in (True, False)]
    for model in models if zero else ():
        model.second.data.zero_()
    found, expected = (feedback(model, X) for model in models)
    for a, b, w in zip(found, expected, models[0].kept):
        assert torch.equal(a, b)
        assert zero or not torch.allclose(a / w.abs(), a[0, 0] / w[0, 0].abs())
    followed = feedback(Away(True, double=double), X.clone().requires_grad_())
    assert zero or all(torch.equal(a, b) for a, b in zip(found, followed))


def test_weights_that_stay_away_are_refused() -> None:
    model = lfpgraph.wrap(Away(True, back=False), "lfp", engine="live")
    loss = (model(X) ** 2).sum()
    with pytest.raises((WrapError, RuntimeError)):
        loss.backward()


class Hooked(nn.Module):
    """Reaches autograd's node of a parameter from inside forward, as FSDP does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5).double()
        self.arrived: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        w: Any = self.layer.weight
        for same in (w.expand_as(w), w.view_as(w)):
            assert same.grad_fn.next_functions[0][0].variable is w
        self.node = w.view_as(w).grad_fn.next_functions[0][0]
        self.node.register_hook(lambda *_: self.arrived.append(w.grad.clone()))
        return self.layer(x) + x @ w.view_as(w)


def test_autograds_node_of_a_parameter_is_found_in_forward(caplog: pytest.LogCaptureFixture) -> None:
    model = Hooked()
    found = feedback(model, X)
    assert len(model.arrived) >= 2 and torch.equal(model.arrived[-1], found[0])
    twin = Hooked()
    twin.forward = lambda x: twin.layer(x) + x @ twin.layer.weight  # type: ignore[method-assign]
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(found[0], feedback(twin, X)[0], rtol=1e-12, atol=0)
    assert "no feedback" not in caplog.text and "in part" not in caplog.text


class Flat(nn.Module):
    """Its matrices are pieces of one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.bias = nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.flat.split([25, 25])
        return torch.tanh(x @ first.view(5, 5)) @ second.view(5, 5) + self.bias.view(1, 5)


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_matrices_within_a_vector_are_told_of(composite: str, caplog: pytest.LogCaptureFixture) -> None:
    feedback(Flat(), X.float(), composite)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == (composite == "lfp") and all("'flat'" in text for text in said)


class Given(nn.Module):
    """May be given its own parameter as an input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p, self.layer = nn.Parameter(torch.randn(4, 5)), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) * self.p


def test_a_parameter_as_an_input_is_both() -> None:
    found = []
    for scale in (None, 1.0):
        model = lfpgraph.wrap(Given(), "lfp", engine="live")
        model(model.p if scale is None else model.p * scale).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


class Contained(nn.Module):
    """Reads its weight from a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.last = nn.Parameter(torch.randn(5, 5)), nn.Linear(5, 3)
        self.held = {"w": self.w}

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x @ self.held["w"]))


def test_a_trace_without_guards_takes_no_weight_for_a_constant() -> None:
    model, x = Contained(), X.float()
    for work in (lambda: lfpgraph.trace(model, (x,)), lambda: lfpgraph.feedback(model, x, torch.ones_like)):
        with pytest.raises(TraceError, match="the parameter w"):
            work()
    found = lfpgraph.feedback(model, x, lambda out: out, "lfp", fallback="retrace")
    lfpgraph.wrap(model, "lfp", engine="live")(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


@pytest.mark.parametrize("told", [False, True])
def test_parameters_of_a_class_that_lets_nothing_be_followed_are_refused(told: bool) -> None:
    """Torch's weights that give the gradients of each sample take a few functions of torch, and no others."""
    x = torch.randn(5, 4)
    model = lfpgraph.wrap(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), "lfp")
    before: list[Tensor] = []
    if told:
        model(x).sum().backward()
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with pytest.raises(WrapError, match="ExpandedWeight"):
        call_for_per_sample_grads(model, batch_size=5)(x)
    model.zero_grad()
    model(x).sum().backward()  # it goes on as before
    after = [p.grad for p in model.parameters()]
    assert None not in after and all(torch.equal(g, p) for g, p in zip(before, after, strict=told))
