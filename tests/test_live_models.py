"""Kinds of models that other libraries build, on the live engine: the recorded gradient is autograd's, and LFP is finite."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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
