"""Live runs that go as the run before them are noted least (`live.repeats.replay`): what parts from it is seen."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.live import engine
from lfpgraph.live.repeats import expected as repeated

from .support.live.every import CASES
from .support.live.replays import SETTLED, compare, replayed, step
from .support.live.table import assert_equal, run

__all__ = ["replayed"]


class Net(nn.Module):
    """Three layers; a case changes what happens between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second, self.third = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)
        self.between: Callable[[Tensor], Tensor] = lambda h: h
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(self.act(self.first(x)))
        h = self.act(self.second(h) + h)
        out: Tensor = self.third(h)
        return out


def settled(composite: str) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(4, 5, dtype=torch.float64)
    lfpgraph.wrap(model, composite, engine="live")
    for _ in range(SETTLED):
        step(model, x)
    return model, x


def another_parameter(net: Net) -> None:
    net.second = nn.Linear(6, 6).double()


def other_values(net: Net) -> None:
    with torch.no_grad():
        net.first.weight.mul_(-1.5)


def frozen(net: Net) -> None:
    net.second.weight.requires_grad_(False)


def bias_frozen(net: Net) -> None:
    net.second.bias.requires_grad_(False)


def another_operation(net: Net) -> None:
    net.between = lambda h: h * 0.5


def written(net: Net) -> None:
    net.between = lambda h: (h + 1).mul_(0.5)


def without_gradient(net: Net) -> None:
    net.between = lambda h: h.detach()


def hooked(net: Net) -> None:
    net.second.register_forward_hook(lambda module, args, out: out * 2)


def hooked_before(net: Net) -> None:
    net.act.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))


def another_forward(net: Net) -> None:
    net.second.forward = lambda x: F.linear(x, net.second.weight * 2, net.second.bias)  # type: ignore[method-assign]


def in_place(net: Net) -> None:
    net.act.inplace = True


def leaky(net: Net) -> None:
    net.act = nn.LeakyReLU()  # type: ignore[assignment]


def kept_on_self(net: Net) -> None:
    def between(h: Tensor) -> Tensor:
        net.state = h
        return h

    net.between = between


def tied(net: Net) -> None:
    net.second.bias = net.first.bias


def hook_on_tensor(net: Net) -> None:
    def between(h: Tensor) -> Tensor:
        h.register_hook(lambda s: s * 2)
        return h

    net.between = between


CHANGES = [
    another_parameter, other_values, frozen, bias_frozen, another_operation, written, without_gradient,
    hooked, hooked_before, another_forward, in_place, leaky, kept_on_self, tied, hook_on_tensor,
]  # fmt: skip


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(
    change: Callable[[Net], None], composite: str, replayed: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """At once, but for operations whose values nobody kept in the first step of the new way; one line tells of those."""
    model, x = settled(composite)
    assert replayed[-1:] == [True]
    change(model)
    fresh = lfpgraph.wrap(copy.deepcopy(lfpgraph.unwrap(copy.deepcopy(model))), composite, engine="live")
    change(fresh) if change not in (hooked, hooked_before) else None  # what a copy has of the first model
    if change in (another_parameter, other_values, tied):
        fresh.load_state_dict(model.state_dict())
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        found, expected = step(model, x), step(fresh, x)
    if "took another way" not in caplog.text:
        compare(found, expected)
    for _ in range(2):
        compare(step(model, x), step(fresh, x))


def test_a_way_taken_only_at_times(replayed: list[bool], caplog: pytest.LogCaptureFixture) -> None:
    """Each run is noted as the one it is, whatever was expected."""
    model, x = settled("lfp-epsilon")
    fresh = lfpgraph.wrap(copy.deepcopy(lfpgraph.unwrap(copy.deepcopy(model))), "lfp-epsilon", engine="live")
    fresh.load_state_dict(model.state_dict())
    for i in range(12):
        for net in (model, fresh):
            net.between = (lambda h: h) if i % 3 else (lambda h: h.tanh())
        fresh_again = lfpgraph.wrap(lfpgraph.unwrap(fresh), "lfp-epsilon", engine="live")
        caplog.clear()
        found, expected = step(model, x), step(fresh_again, x)
        if "took another way" not in caplog.text:
            compare(found, expected)
    assert "took another way" not in caplog.text
    assert {True, False} <= set(replayed)


def test_a_function_that_torch_has_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user puts in place of `F.linear` runs."""
    model, x = settled("lfp-epsilon")
    calls: list[int] = []
    linear = F.linear

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return linear(*args)

    monkeypatch.setattr(F, "linear", counted)
    step(model, x)
    assert len(calls) == 3


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_hooks_and_kept_gradients_see_what_they_saw(composite: str) -> None:
    model, x = settled(composite)
    fresh = lfpgraph.wrap(copy.deepcopy(lfpgraph.unwrap(copy.deepcopy(model))), composite, engine="live")
    seen: list[list[Tensor]] = []
    for net in (model, fresh):
        own: list[Tensor] = []

        def between(h: Tensor, own: list[Tensor] = own) -> Tensor:
            h.retain_grad()
            own.append(h)
            return h

        net.between = between
        out = net(x)
        out.register_hook(own.append)
        out.retain_grad()
        (asked,) = torch.autograd.grad(out.square().sum(), own[0], retain_graph=True)
        out.square().sum().backward()
        seen.append([asked, own[1], out.grad, own[0].grad])
    for found, expected in zip(*seen):
        assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_twice_through_one_graph_and_a_second_derivative(replayed: list[bool]) -> None:
    model, x = settled("lfp")
    once = step(model, x)
    model.zero_grad(set_to_none=True)
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    compare({n: p.grad for n, p in model.named_parameters()}, {n: 2 * g for n, g in once.items()})  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()
    plain = lfpgraph.unwrap(copy.deepcopy(model))
    found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()), create_graph=True)
    for g, e in zip(found, torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))):
        assert torch.allclose(g, e)
    assert replayed[-1]


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_a_gradient_that_is_no_feedback_is_told_of(composite: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = settled(composite)
    for _ in range(3):
        step(model, x)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        model.third.bias.sum().backward()
    assert "third.bias" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_the_table_of_live_python(composite: str, monkeypatch: pytest.MonkeyPatch, replayed: list[bool]) -> None:
    """Compared from the second step on, each case does what it does when all of it is noted."""
    monkeypatch.setattr(engine, "_UNSURE", 0)
    count = 0
    for case in (case for case in CASES.values() if case.lfp):  # a hook on what has no gradient may be given None
        replayed.clear()
        found = run(case, composite, "live")
        if replayed:
            count += 1
            with monkeypatch.context() as patch:
                patch.setattr(repeated, "_simple", lambda *given: None)
                assert_equal(found, run(case, composite, "live"), 1e-9)
    assert count > 60
