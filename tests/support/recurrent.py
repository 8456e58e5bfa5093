"""A recurrent layer within a model, and its feedback, for tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import lfpgraph

CELLS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


class Recurrent(nn.Module):
    """A layer whose states are read by an activation, which divides rewards, and by a head, which does not."""

    def __init__(self, cell: str, **options: Any) -> None:
        super().__init__()
        self.layer = CELLS[cell](3, 4, batch_first=True, **options)
        self.head = nn.Linear(4 * (1 + self.layer.bidirectional), 2)

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        out, end = self.layer(x, state)
        ends = end if isinstance(end, tuple) else (end,)
        return self.head(out.tanh().mean(1) + out[:, -1]) + sum(e.mean() for e in ends)


def feedback_of(model: nn.Module, inputs: Any, composite: str, engine: str) -> dict[str, Tensor]:
    wrapped = lfpgraph.wrap(copy.deepcopy(model), composite, engine=engine)
    inputs = [x.clone().requires_grad_() for x in inputs]
    nn.functional.cross_entropy(wrapped(*inputs), torch.tensor([0, 1])).backward()
    found = {f"input {i}": x.grad for i, x in enumerate(inputs)} | {n: p.grad for n, p in wrapped.named_parameters()}
    return {name: grad for name, grad in found.items() if grad is not None}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=f"{name} differs")
