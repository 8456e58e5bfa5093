"""Weights used at every time step: in the static engine, their products joined into one give the same feedback."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lfpgraph

from .support.helpers import assert_same, gradients
from .support.operations import Operations


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


def _run(model: nn.Module, x: Tensor, **options: str) -> tuple[dict[str, Tensor], Operations]:
    """Feedback of a wrapped model that has been traced before, and the operations of its backward."""
    lfpgraph.wrap(model, engine="static", **options)
    found = gradients(model, x)
    out = model(x)
    total = (out if isinstance(out, Tensor) else out[0]).sum()
    with Operations() as seen:
        total.backward()
    return found, seen


@pytest.mark.parametrize(
    "build", [lambda: Loop(9), lambda: nn.LSTM(6, 5, num_layers=2), lambda: nn.GRU(6, 5)], ids=["loop", "lstm", "gru"]
)
def test_joined_equals_apart(build: object) -> None:
    """Joined, or one by one where memory is to be saved, the feedback is the same in float64."""
    torch.manual_seed(0)
    model = build().double()  # type: ignore[operator]
    x = torch.randn(7, 6, dtype=torch.float64) if isinstance(model, Loop) else torch.randn(7, 3, 6, dtype=torch.float64)
    joined, few = _run(model, x)
    apart, many = _run(lfpgraph.unwrap(model), x, memory="min")
    assert_same(joined, apart, 1e-10)
    if isinstance(model, Loop):  # a recurrent layer's steps are one operation, which joins its products itself
        assert few.counts["aten::mm"] < many.counts["aten::mm"]


def test_products_become_one() -> None:
    """Nine steps need nine products for the signal and one for the weight; what is computed again is not joined."""
    x = torch.randn(7, 6)
    counts = {}
    for memory in ("fast", "min"):
        model = Loop(9)
        found, seen = _run(model, x, memory=memory)
        assert set(found) == {"layer.weight", "layer.bias"}
        counts[memory] = seen.counts["aten::mm"]
        model(torch.randn(3, 6)).sum().backward()
        assert lfpgraph.explain_wrap(model).traces == 1
    assert counts["fast"] == 8 + 1 + 1 and counts["min"] >= 8 + 1 + 9  # the first step asks for no signal of x


def test_few_terms_stay() -> None:
    """Two uses of a weight are added, not joined."""
    _, seen = _run(Loop(2), torch.randn(7, 6))
    assert seen.counts["aten::cat"] == 0
