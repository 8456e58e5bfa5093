"""What a model does to its own parameters in the midst of forward, from step to step: live runs that are only compared see it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .support.live.replays import SETTLED, compare, replayed, step
from .support.live.table import RECORDED

__all__ = ["replayed"]
STEPS = SETTLED + 3


class Net(nn.Module):
    """Takes its first layer twice, and does something to it between."""

    def __init__(self, between: Callable[[Net], None], behind: Callable[[Net], None]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.between, self.behind, self.steps = between, behind, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        self.between(self)
        if self.steps >= SETTLED:
            h = h + self.first(x).relu() * 0.5
        self.behind(self)
        self.steps += 1
        out: Tensor = self.last(h)
        return out


def late(net: Net) -> bool:
    return net.steps >= SETTLED


def nothing(net: Net) -> None:
    """Nothing is done."""


def half(net: Net) -> None:
    if late(net):
        net.whole = net.first.weight.data  # type: ignore[assignment]
        net.first.weight.data = net.first.weight.data * 0.5


def whole(net: Net) -> None:
    if late(net):
        net.first.weight.data = net.whole  # type: ignore[assignment]


def frozen(name: str, trains: bool) -> Callable[[Net], None]:
    def set_it(net: Net) -> None:
        if late(net):
            net.first.get_parameter(name).requires_grad_(trains)

    return set_it


def clamped(net: Net) -> None:
    with torch.no_grad():
        net.first.bias.clamp_(-0.2, 0.2)


def row_written(net: Net) -> None:
    with torch.no_grad():
        row = net.last.weight[0]
        row.fill_(0.3)
        row.mul_(0.5)
        net.last.bias[1] = 0.1


WAYS = {
    "other memory between": (half, whole),
    "frozen between": (frozen("weight", False), frozen("weight", True)),
    "bias frozen between": (frozen("bias", False), frozen("bias", True)),
    "written behind its use": (nothing, clamped),
    "written by rows": (nothing, row_written),
}


def _made(kind: str) -> Net:
    torch.manual_seed(0)
    return Net(*WAYS[kind]).double()


@pytest.mark.parametrize("kind", WAYS)
def test_gradient_is_autograds(kind: str) -> None:
    plain, model = _made(kind), _made(kind)
    lfpgraph.wrap(model, RECORDED, engine="live")
    for i in range(STEPS):
        x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        compare(step(model, x), step(plain, x))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))


@pytest.mark.parametrize("kind", WAYS)
def test_feedback_is_that_of_a_model_just_wrapped(kind: str, replayed: list[bool]) -> None:
    """Of runs that begin as the run before them went, and are only compared until there."""
    model = _made(kind)
    lfpgraph.wrap(model, "lfp", engine="live")
    for i in range(STEPS):
        x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        fresh = copy.deepcopy(model)
        lfpgraph.wrap(lfpgraph.unwrap(fresh), "lfp", engine="live")
        compare(step(model, x), step(fresh, x))
    assert replayed


class Thawed(nn.Module):
    """Uses its layer while that is frozen, as energy models draw samples, and lets it train for the use that counts."""

    def __init__(self, freezes: bool) -> None:
        super().__init__()
        self.layer, self.freezes = nn.Linear(5, 3), freezes

    def forward(self, x: Tensor) -> Tensor:
        self.layer.requires_grad_(not self.freezes)
        sample = self.layer(x.detach()).detach()
        self.layer.requires_grad_(True)
        out: Tensor = self.layer(x) * sample
        return out


def test_what_was_frozen_at_its_first_use_gets_its_feedback_once(caplog: pytest.LogCaptureFixture) -> None:
    """With the outputs of all steps held: autograd's node of a parameter lives as long as one of these, and so do hooks on it."""
    torch.manual_seed(0)
    model, held = lfpgraph.wrap(Thawed(True).double(), "lfp", engine="live"), []
    other = Thawed(False).double()
    other.load_state_dict(model.state_dict())
    lfpgraph.wrap(other, "lfp", engine="live")
    for _ in range(STEPS):
        x = torch.randn(4, 5, dtype=torch.float64)
        for net in (model, other):
            net.zero_grad()
            held.append(net(x))
            held[-1].square().sum().backward()
        compare(*({name: p.grad for name, p in net.named_parameters() if p.grad is not None} for net in (model, other)))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
