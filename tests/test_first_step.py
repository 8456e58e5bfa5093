"""What a first step costs beside its operations: a live run imports no compiler, and asks rules once of what repeats."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from lfpgraph.models_zoo.other_kinds import SpikingMLP
from torch import Tensor, nn

import lfpgraph
from lfpgraph.live import schedule

STEPS = """
import sys, torch, lfpgraph
from torch import nn
from lfpgraph.models_zoo.other_kinds import RecurrentClassifier, SpikingMLP

tokens = torch.randint(9, (2, 4))
for composite, model, x in (
    ("lfp", SpikingMLP(6, 5, 3, 4), torch.rand(2, 6)),
    ("lfp", nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 3)), torch.randn(2, 6)),
    *((c, RecurrentClassifier(kind, 9, 6), tokens) for c in ("lfp", "lfp-epsilon") for kind in ("LSTM", "GRU")),
):
    lfpgraph.wrap(model, composite)
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules, (composite, model)
"""


def test_a_live_run_imports_no_compiler() -> None:
    """torch's compiler takes most of a second to import, which is more than the first step of such a model."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rules_are_asked_once_of_steps_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison and its cast are one unit; a loop of many steps has as many of them, all alike."""
    asked = []
    answers_of = schedule.answers_of
    monkeypatch.setattr(schedule, "answers_of", lambda unit: asked.append(unit.node) or answers_of(unit))

    def count(steps: int) -> int:
        asked.clear()
        model = SpikingMLP(6, 5, 3, steps)
        lfpgraph.wrap(model, engine="live")
        model(torch.rand(2, 6)).square().mean().backward()
        return len(asked)

    assert count(12) == count(6) > 0


class _Thresholds(nn.Module):
    """Two comparisons with a number and their casts: alike, or with other numbers."""

    def __init__(self, other: float) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        h = (self.a(x) > 0.1).to(x.dtype)
        return self.head((self.b(h) > self.other).to(x.dtype))  # type: ignore[no-any-return]


@pytest.mark.parametrize("other", [0.1, -0.2])
def test_what_is_asked_once_holds_for_what_is_alike_alone(other: float) -> None:
    found = []
    for engine in ("live", "static"):
        torch.manual_seed(0)
        model = _Thresholds(other).double()
        lfpgraph.wrap(model, engine=engine)
        torch.manual_seed(1)
        model(torch.randn(5, 4, dtype=torch.float64)).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert a is not None and a.abs().sum() > 0
