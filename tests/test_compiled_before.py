"""torch.compile does not take a wrapped model's call for a plain one's; what it compiles may hold the backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import convert_frame
from torch._dynamo.variables import nn_module

import lfpgraph

from .support.helpers import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it
X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Call = Callable[[nn.Module, Tensor], Tensor]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)).double()


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def _step(model: nn.Module, x: Tensor) -> Tensor:
    loss = _loss(model, x)
    loss.backward()
    return loss.detach()


def _grads(call: Call, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss = call(model, X)
    if loss.requires_grad:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def as_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile as it is before anything has been wrapped."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn_module, "unpatched_nn_module_call_impl", nn.Module._call_impl)


CALLS: dict[str, Callable[[], Call]] = {
    "the model": lambda: lambda model, x: torch.compile(model, backend="eager")(x).square().sum(),
    "a loss": lambda: torch.compile(_loss, backend="eager"),
}


@pytest.mark.usefixtures("as_imported")
@pytest.mark.parametrize("order", ["wrapped last", "wrapped first", "imported last"])
@pytest.mark.parametrize("compiled", CALLS)
def test_compiled_for_a_plain_model(compiled: str, order: str, caplog: pytest.LogCaptureFixture) -> None:
    """A plain model is trained, and a wrapped one of its class after it, by the same compiled code."""
    expected = _grads(_loss, lfpgraph.wrap(_net(), engine="live"))
    setattr(nn_module, "unpatched_nn_module_call_impl", nn.Module._call_impl)  # noqa: B010
    call, plain, model = CALLS[compiled](), _net(), _net()
    true = _grads(_loss, _net())
    if order != "wrapped last":
        lfpgraph.wrap(model, engine="live")
    if order == "imported last":
        setattr(nn_module, "unpatched_nn_module_call_impl", nn.Module._call_impl)  # noqa: B010
    assert_same(_grads(call, plain), true, 1e-12)
    if order == "wrapped last":
        lfpgraph.wrap(model, engine="live")
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        if order == "imported last":  # which nobody could know of before a gradient came
            _grads(call, model)
            assert ["made anew" in r.getMessage() for r in caplog.records if r.name == "lfpgraph"] == [True]
        for _ in range(3):
            assert_same(_grads(call, model), expected, 1e-12)
            assert_same(_grads(call, plain), true, 1e-12)
    assert sum(r.name == "lfpgraph" for r in caplog.records) == (order == "imported last")
    lfpgraph.unwrap(model)
    assert_same(_grads(call, model), true, 1e-12)


@pytest.mark.parametrize("engine", ["live", "static"])
def test_backward_within_what_is_compiled(engine: str) -> None:
    """The library's hooks are no part of a compiled function whose backward pass calls them."""
    torch._dynamo.reset()
    expected = _grads(_loss, lfpgraph.wrap(_net(), engine="live"))
    model = lfpgraph.wrap(_net(), engine=engine)
    call = torch.compile(_step, backend="eager")
    for _ in range(3):
        assert_same(_grads(call, model), expected, 1e-12)
    seen = [code for ref in convert_frame.input_codes.seen if (code := ref()) is not None]
    assert any(code is _step.__code__ for code in seen)
    assert [code.co_qualname for code in seen if "/lfpgraph/live/" in code.co_filename] == []
