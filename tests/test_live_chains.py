"""Modules called one after the other, and parameters, in runs that are only compared with the run before (`live.repeats`)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lfpgraph
from lfpgraph.live.repeats import expected

from .support.live.replays import SETTLED, compare, replayed, step

__all__ = ["replayed"]


class Chain(nn.Sequential):
    pass


def chain(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def hook_within(net: nn.Sequential) -> None:
    net[1].register_forward_hook(lambda module, args, out: out * 2)


def hook_around(net: nn.Sequential) -> None:
    net.register_forward_hook(lambda module, args, out: out * 2)


def another_module(net: nn.Sequential) -> None:
    net[3] = nn.Tanh()


def one_less(net: nn.Sequential) -> None:
    del net[2:4]


def none_left(net: nn.Sequential) -> None:
    del net[:]
    net.append(nn.Linear(5, 3).double())


def forward_within(net: nn.Sequential) -> None:
    net[2].forward = lambda x: F.linear(x, net[2].weight * 2, net[2].bias)  # type: ignore[method-assign,operator,arg-type]


def memory_swapped(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].weight.data = net[0].weight.data * -1.5  # type: ignore[union-attr,operator]


def frozen_within(net: nn.Sequential) -> None:
    net[2].weight.requires_grad_(False)  # type: ignore[union-attr,operator]


WITHIN = [
    hook_within, hook_around, another_module, one_less, none_left, forward_within, memory_swapped, frozen_within,
]  # fmt: skip


@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
@pytest.mark.parametrize("change", WITHIN, ids=lambda change: change.__name__)
def test_a_change_of_a_chain_is_seen(
    change: Callable[[nn.Sequential], None], composite: str, replayed: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """A Sequential whose modules run without a call of each is what it has become by the next step."""
    model, x = lfpgraph.wrap(chain(), composite, engine="live"), torch.randn(4, 5, dtype=torch.float64)
    for _ in range(SETTLED + 2):
        step(model, x)
    assert replayed[-1:] == [True]
    changed = chain()
    torch.manual_seed(1)
    change(changed)
    fresh = lfpgraph.wrap(changed, composite, engine="live")
    torch.manual_seed(1)
    change(model)
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        found, expected = step(model, x), step(fresh, x)
    if "took another way" not in caplog.text:
        compare(found, expected)
    for _ in range(3):
        compare(step(model, x), step(fresh, x))


@pytest.mark.parametrize("kind", [nn.Sequential, Chain])
@pytest.mark.parametrize("composite", ["lfp", "lfp-epsilon"])
def test_an_optimizer_writes_between_the_steps(
    composite: str, kind: type[nn.Sequential], replayed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aliases that are kept from run to run hold what the parameters hold."""
    found: list[dict[str, Tensor]] = []
    x = torch.randn(4, 5, dtype=torch.float64)
    for simple in (expected._simple, lambda *given: None):
        monkeypatch.setattr(expected, "_simple", simple)
        model = lfpgraph.wrap(chain(kind), composite, engine="live")
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(SETTLED + 4):
            optimizer.zero_grad()
            (model(x).square().sum() + model(x + 1).square().sum()).backward()
            optimizer.step()
        found.append(dict(model.named_parameters()))
    assert replayed[-1]
    compare(*found)


def test_a_parameter_is_written_to_before_the_backward_pass() -> None:
    """Autograd refuses, as for the plain model."""
    model, x = lfpgraph.wrap(chain(), "lfp", engine="live"), torch.randn(4, 5, dtype=torch.float64)
    for _ in range(SETTLED + 2):
        step(model, x)
    loss = model(x).square().sum()
    with torch.no_grad():
        model[2].weight.mul_(2)  # type: ignore[operator,union-attr]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
