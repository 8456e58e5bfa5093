"""Models under the default engine: where the static one must not stay, and calls that it shares a step with live ones."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lfpgraph


def _feedback(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def test_calls_of_both_engines_before_one_backward() -> None:
    """The first call is live and the others static; batch norm's statistics are written by all of them."""
    model = _encoder()
    other = lfpgraph.wrap(copy.deepcopy(model), engine="live")
    lfpgraph.wrap(model)
    anchor, near, far = (torch.randn(5, 4).double() for _ in range(3))
    for _ in range(2):
        found, expected = (_feedback(m, F.triplet_margin_loss(m(anchor), m(near), m(far))) for m in (model, other))
        torch.testing.assert_close(found, expected)
    assert lfpgraph.explain_wrap(model).static_calls == 5
    torch.testing.assert_close(dict(model.named_buffers()), dict(other.named_buffers()))


class _Twins(nn.Module):
    """Two inputs through one encoder: its batch norm reads statistics that it has just written."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.encoder(a) - self.encoder(b)).square().sum(-1)


def test_a_batch_norm_called_twice_in_one_trace() -> None:
    model, a, b = _Twins().double(), torch.randn(5, 4).double(), torch.randn(5, 4).double()
    static, live = (lfpgraph.wrap(copy.deepcopy(model), engine=engine) for engine in ("static", "live"))
    torch.testing.assert_close(_feedback(static, static(a, b).sum()), _feedback(live, live(a, b).sum()))


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return self.b(F.relu(self.a(x)) * given.scale)


def test_an_object_among_the_arguments_is_looked_into() -> None:
    torch.manual_seed(0)
    model = _Scaled()
    plain, x, given = copy.deepcopy(model), torch.randn(5, 4), SimpleNamespace()
    lfpgraph.wrap(model)
    for _ in range(3):
        given.scale = torch.rand(6)
        torch.testing.assert_close(model(x, given), plain(x, given))
    assert "SimpleNamespace" in lfpgraph.explain_wrap(model).why


def test_no_tensor_among_the_arguments() -> None:
    """Such a call cannot be traced, and runs live."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, given: Any) -> Tensor:
            return self.a(given.x)

    torch.manual_seed(0)
    model = lfpgraph.wrap(Net())
    for _ in range(3):
        assert _feedback(model, model(SimpleNamespace(x=torch.randn(3, 4))).sum())["a.weight"].any()
    assert lfpgraph.explain_wrap(model).engine == "live"


def test_a_model_that_fixes_its_sizes_is_not_traced_for_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.a(x[i]) for i in range(len(x)))  # type: ignore[return-value]

    torch.manual_seed(0)
    model = lfpgraph.wrap(Net())
    for n in range(2, 8):
        model(torch.randn(n, 4)).sum().backward()
    explained = lfpgraph.explain_wrap(model)
    assert explained.engine == "live" and explained.traces == 2


CHOICES = {
    "argmax": lambda h: F.one_hot(h.argmax(-1), 6).to(h.dtype),
    "gated": lambda h: h * F.one_hot(h.max(-1).indices, 6).double(),
    "scattered": lambda h: torch.zeros_like(h).scatter(-1, h.topk(2).indices, 1.0),
    "step": lambda h: (h > 0).to(h.dtype),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_takes_its_reward_in_both_engines(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(CHOICES[name](self.a(x)))

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(9, 4).double()
    static, live = (lfpgraph.wrap(copy.deepcopy(model), engine=engine) for engine in ("static", "live"))
    found = _feedback(live, live(x).square().sum())
    assert bool(found["a.weight"].any())
    torch.testing.assert_close(found, _feedback(static, static(x).square().sum()))
