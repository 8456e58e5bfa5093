"""One wrap, many sizes: which calls share a trace or a plan."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from lfpgraph.models_zoo.tiny import build_tiny
from torch import Tensor, nn

import lfpgraph

from .support.helpers import assert_made, assert_same, gradients, true_gradient


class Lonely(nn.Module):
    """Takes another way for a batch of one, as a model may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).tanh() if x.shape[0] == 1 else self.second(x).sigmoid()


@pytest.mark.parametrize("order", [(1, 1, 5, 1, 2), (5, 1, 2, 1)])
def test_a_batch_of_one_of_its_own(order: tuple[int, ...], caplog: pytest.LogCaptureFixture, engine: str) -> None:
    model = Lonely()
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    with caplog.at_level(logging.WARNING, logger="lfpgraph"):
        for n in order:
            x = torch.randn(n, 4, dtype=torch.float64)
            expected, found = gradients(model, x), gradients(twin, x)
            assert_same(found, _nonzero(expected, found) if engine == "static" else expected, 1e-10)
    assert_made(twin, engine, 2)
    assert engine == "live" or "batch of one" in caplog.text or "again" in caplog.text


def _nonzero(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Autograd gives None to what is not used; the static engine may give zeros."""
    return {name: expected.get(name, torch.zeros_like(value)) for name, value in found.items()}


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_batches_and_lengths_of_a_transformer(name: str, engine: str) -> None:
    """From 1 x 8 to 64 x 32 on at most two traces or plans, equal to autograd.

    Two more plans for BERT at its greatest length, where Python's `x[:, :n]` takes everything: that is another operation.
    """
    model, batch = build_tiny(name, layers=1)
    model.double().eval()
    twin = lfpgraph.wrap(copy.deepcopy(model), true_gradient(engine), engine=engine)
    torch.manual_seed(0)
    for n, length in ((2, 8), (1, 8), (64, 16), (1, 32), (7, 32)):
        ids = torch.randint(20, (n, length))
        assert_same(gradients(twin, input_ids=ids), gradients(model, input_ids=ids), 1e-9, 1e-12)
    made = lfpgraph.explain_wrap(twin)
    assert 1 <= made.traces + made.plans <= (4 if (name, engine) == ("bert", "live") else 2), made
