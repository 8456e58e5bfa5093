"""What the live engine keeps of large values: half of what one factor looks at, and activations are made again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.engine.units import Unit
from lfpgraph.kernels import halved, halved_factor
from lfpgraph.live import amendments, kept
from lfpgraph.live.arrivals import references
from lfpgraph.live.call import answers_of
from lfpgraph.live.record import Record
from lfpgraph.native import matmul
from lfpgraph.numerics import epsilon_factor
from lfpgraph.wrapping.calls import wrapping_of

from .support.helpers import gradients

_SETTLED = 5  # steps after which a model keeps no more than it has to


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kept, references, amendments):
        monkeypatch.setattr(module, "LARGE", 1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.double = False

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.into(self.norm(x)))
        out: Tensor = x + self.out(y)
        if self.double:
            y.mul_(2)
        return out


def settled(**options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """A plain model, the same after some live steps, and a batch."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 4))
    x = torch.randn(2000, 8)
    live = lfpgraph.wrap(copy.deepcopy(plain), composite="lfp-epsilon", engine="live", **options)
    for _ in range(_SETTLED):
        gradients(live, x)
    return plain, live, x


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-6])
def test_half_of_a_value_is_enough_for_its_factor(scale: float) -> None:
    torch.manual_seed(0)
    z, s = torch.randn(400, 500) * scale, torch.randn(400, 500)
    z[0, :3] = torch.tensor([0.0, torch.inf, 1e30])
    expected, found = epsilon_factor(s.double(), z.double(), 1e-6), halved_factor(s, halved(z, 1e-6))
    assert (found - expected).norm() <= min(2**-12, 2e-7 / scale**0.5) * expected.norm()
    assert found[0, 0] == 0 and torch.equal(found[0, 1:3], s[0, 1:3])


def test_feedback_of_halves_and_remade_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], list[int]]] = []
    close = Record.close

    def closed(self: Record) -> None:
        seen.append((sorted(self.halved), sorted(self.remade)))
        close(self)

    monkeypatch.setattr(Record, "close", closed)
    plain, live, x = settled()
    halves, remade = seen[-1]
    assert len(halves) == 2 and len(remade) == 2  # what each block adds; its activation
    monkeypatch.setattr(matmul, "onednn_is_quicker", lambda: False)  # the same products in both engines
    static = gradients(lfpgraph.wrap(copy.deepcopy(plain), composite="lfp-epsilon", engine="static"), x)
    exact = gradients(lfpgraph.wrap(plain.double(), composite="lfp-epsilon", engine="static"), x.double())
    for name, found in gradients(live, x).items():
        if exact[name].any():
            rounding = (static[name] - exact[name]).norm()
            assert (found - static[name]).norm() <= 0.5 * rounding, name  # float32's own is larger


def test_half_of_an_output_is_enough_if_the_user_drops_it() -> None:
    _, live, x = settled()
    (schedule,) = wrapping_of(live)._live[""].schedules.values()  # type: ignore[union-attr]
    before = set(schedule.unshared)
    for held in (True, False):
        out = live(x)
        loss = out.sum()
        if not held:
            del out
        loss.backward()
        assert (schedule.unshared > before) is not held
    expected = gradients(live, x)  # its output, too, as half
    for name, found in gradients(
        lfpgraph.wrap(lfpgraph.unwrap(live), composite="lfp-epsilon", engine="static"), x
    ).items():
        assert (found - expected[name]).norm() <= 1e-4 * found.norm()


def test_derivatives_inside_the_loss_are_the_same() -> None:
    plain, live, x = settled()
    fresh = lfpgraph.wrap(plain, composite="lfp-epsilon", engine="live")

    def penalty(model: nn.Module) -> tuple[Tensor, ...]:
        given = x.clone().requires_grad_()
        (s,) = torch.autograd.grad(model(given).sum(), given, create_graph=True)
        return s.detach(), *torch.autograd.grad(s.square().sum(), list(model.parameters()), allow_unused=True)

    for expected, found in zip(penalty(fresh), penalty(live)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_writes_to_what_is_made_again() -> None:
    plain, live, x = settled()
    expected = gradients(live, x)
    live[2].double = True  # type: ignore[index]  # backprop refuses this: what the product has saved is written to
    for name, found in gradients(live, x).items():
        torch.testing.assert_close(found, expected[name])


def test_writes_to_parameters_are_seen() -> None:
    _, live, x = settled()
    loss = live(x).sum()
    with torch.no_grad():
        live[1].out.weight.mul_(2)  # type: ignore[index,union-attr]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_users_hooks_on_saved_tensors_come_first() -> None:
    _, live, x = settled()
    expected = gradients(live, x)
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = gradients(live, x)
    assert sum(x.shape[-1] == 64 for x in saved) >= 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_sparing_save_gives_the_same_entries() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    w = torch.randn(4, requires_grad=True)
    remade = kept.Remade(torch.exp, x.detach(), 0)
    y = x.exp()
    with kept.sparing([(y, remade)]):
        z = (y[1:].T * w[:, None]).sum()
    (found,) = torch.autograd.grad(z, w)
    torch.testing.assert_close(found, x.detach().exp()[1:].sum(0))


def test_signals_that_others_hold_are_not_written_over() -> None:
    _, live, x = settled()
    expected = gradients(live, x)
    held: list[Tensor] = []
    copies: list[Tensor] = []

    def hold(s: Tensor) -> None:
        held.append(s)
        copies.append(s.clone())

    out = live(x)
    out.register_hook(hold)
    (both,) = (
        live[1].register_full_backward_hook(lambda m, i, o: held.extend(o) or copies.extend(s.clone() for s in o)),
    )  # type: ignore[index,func-returns-value]
    live.zero_grad()
    again = live(x)
    again.register_hook(hold)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    given = weight.clone()
    again.backward(given, retain_graph=True)
    both.remove()
    assert len(held) == 2 and torch.equal(given, weight)
    for s, before in zip(held, copies):
        assert torch.equal(s, before)
    for name, parameter in live.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name])
        parameter.grad = None
    again.backward(given)
    for name, parameter in live.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name])


def test_a_rule_is_asked_once_where_units_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answers(unit: Unit) -> Any:
        asked.append(str(unit.node.target))
        return answers_of(unit)

    monkeypatch.setattr("lfpgraph.live.schedule.answers_of", answers)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(3)))
    lfpgraph.wrap(model, engine="live")(torch.randn(2, 4))
    assert asked.count("aten.gelu.default") == 1
