"""Threads that run, trace and differentiate one wrapped model at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .support.helpers import in_threads


def data() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Between(nn.Module):
    """Two blocks that are alike, and Python of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.between: Callable[[], None] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        self.between()
        out: Tensor = self.blocks[1](x)
        return out


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("traced", ["by a call", "by attribute"])
def test_nobody_traces_in_the_midst_of_a_run(traced: str, grad: bool) -> None:
    """A model's parameters stay its own for as long as one thread runs it, whatever another one needs to trace."""
    model, found, inside = lfpgraph.wrap(Between(), regional=True), list[type](), threading.Event()
    model(data())

    def look() -> None:
        if not inside.is_set():
            inside.set()
            for _ in range(100):
                found.extend(map(type, model.parameters()))
                threading.Event().wait(0.002)

    def run() -> None:
        model.between = look
        with torch.set_grad_enabled(grad):
            model(data())

    def trace() -> None:
        assert inside.wait(30)
        if traced == "by a call":  # of another kind than before
            model(data().requires_grad_())
        else:
            lfpgraph.attribute(model, data(), 0)

    assert in_threads(run, trace) == [None, None] and set(found) == {nn.Parameter}


def test_a_run_that_waits_for_the_one_who_traces() -> None:
    """A forward that calls its parts in another thread, which has to trace them, is not waited for there."""
    model = lfpgraph.wrap(Between(), regional=True)
    found: list[Any] = []
    model.between = lambda: found.extend(in_threads(lambda: model.blocks[0](torch.ones(2, 4).requires_grad_())))
    model(data())
    torch.testing.assert_close(found, [model.blocks[0](torch.ones(2, 4))])


def test_backward_in_several_threads_at_once(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is feedback in one thread is none in another, and nobody is told otherwise."""
    model, both = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), threading.Barrier(2)

    def wait(_: Tensor) -> None:
        both.wait(30)

    model[0].weight.register_hook(wait)  # before the wrap's own
    lfpgraph.wrap(model, engine=engine)
    for _ in range(3):
        losses = [model(data()).square().sum() for _ in range(2)]
        assert in_threads(*(loss.backward for loss in losses)) == [None, None]
    assert "no feedback" not in caplog.text and "in part" not in caplog.text
