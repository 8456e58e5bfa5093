"""Weights used at every time step: their products joined into one give the same feedback."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lfpgraph

from .support.helpers import assert_same, gradients, lfp


class Loop(nn.Module):
    """One layer again and again; `shared` also meets the input once, through a transpose."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.layer, self.steps = nn.Linear(6, 6), steps

    def forward(self, x: Tensor) -> Tensor:
        state = x
        for _ in range(self.steps):
            state = torch.tanh(self.layer(state)) + x
        return state @ self.layer.weight.t()


class _Calls(TorchDispatchMode):
    """Counts the operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _calls(model: nn.Module, x: Tensor) -> Counter[str]:
    """What the feedback of a wrapped model runs."""
    loss = model(x).sum()
    with _Calls() as calls:
        loss.backward()
    return calls.count


@pytest.mark.parametrize(
    "build", [lambda: Loop(9), lambda: nn.LSTM(6, 5, num_layers=2), lambda: nn.GRU(6, 5)], ids=["loop", "lstm", "gru"]
)
def test_joined_equals_apart(build: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined or one by one, the feedback is the same in float64, for the batch that was traced and for another."""
    torch.manual_seed(0)
    model = build().double()  # type: ignore[operator]
    x = torch.randn(7, 6, dtype=torch.float64) if isinstance(model, Loop) else torch.randn(7, 3, 6, dtype=torch.float64)
    joined = lfp(model, x)
    monkeypatch.setattr("lfpgraph.engine.program.join_products", lambda graph: 0)
    assert_same(joined, lfp(model, x), 1e-10)


def test_products_become_one() -> None:
    """Nine steps need nine products for the signal and one for the weight; what is computed again is not joined."""
    x = torch.randn(7, 6)
    counts = {}
    for memory in ("fast", "min"):
        model = lfpgraph.wrap(Loop(9), memory=memory)
        found = gradients(model, x)
        assert set(found) == {"layer.weight", "layer.bias"}
        counts[memory] = _calls(model, torch.randn(3, 6))["aten.mm.default"]
        assert model.forward.traces == 1
    assert counts["fast"] == 8 + 1 + 1 and counts["min"] >= 8 + 1 + 9  # the first step asks for no signal of x


def test_few_terms_stay() -> None:
    """Two uses of a weight are added, not joined."""
    model = lfpgraph.wrap(Loop(2))
    assert _calls(model, torch.randn(7, 6))["aten.cat.default"] == 0
