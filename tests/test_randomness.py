"""Blocks that leave random generators, and the modes of modules, as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import lfpgraph
from lfpgraph import randomness
from lfpgraph.modes import eval_mode
from lfpgraph.randomness import keep_random_state
from lfpgraph.tracing.tracer import trace
from lfpgraph.tracing.verify import disagreement, draws_numbers


def dropping(device: str = "cpu") -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)).to(device)


def draw() -> list[float]:
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def test_two_blocks_draw_the_same() -> None:
    with keep_random_state(python=True):
        first = draw()
    with pytest.raises(KeyError), keep_random_state(python=True):
        assert draw() == first
        raise KeyError
    with keep_random_state():
        torch_alone = draw()
    after = draw()
    assert torch_alone == first and after[0] == first[0]
    assert after[1] != first[1] and after[2] != first[2], "Python's and numpy's were not to be kept"


def test_which_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all parameters, buffers and inputs; meta and fake tensors lie on none."""
    with FakeTensorMode():
        fake = torch.empty(3, device="cuda")
    meta = nn.Linear(2, 2, device="meta")
    with keep_random_state(meta, fake):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert randomness._accelerators([meta, {"x": fake}, torch.ones(2), 3]) == []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    assert randomness._accelerators([meta, {"x": fake}, torch.ones(2), 3]) == [0]
    assert randomness._accelerators([nn.BatchNorm1d(2, affine=False)]) == [0], "buffers count"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_model_with_dropout_is_checked(device: str) -> None:
    """Model and graph draw the same masks, so that the check of the graph means something; the generators stay."""
    model, x = dropping(device), torch.randn(6, 8, device=device)
    state = torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None
    assert draws_numbers(model, (x,), {}) and not draws_numbers(model.eval(), (x,), {})
    graph = trace(model.train(), x)
    assert disagreement(graph, model, (x,), {}) == 0
    assert torch.equal(torch.get_rng_state(), state[0])
    assert state[1] is None or torch.equal(torch.cuda.get_rng_state(), state[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_call_that_traces_draws_what_a_later_one_does(device: str) -> None:
    model, x = lfpgraph.wrap(dropping(device)), torch.randn(6, 8, device=device)
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(1)
    assert torch.equal(first, model(x))


def test_every_module_gets_its_own_mode_back() -> None:
    model = dropping()
    model[1].eval()
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, True]
