"""A module that has two places in its model (a norm under its own name, and in a Sequential) keeps its own tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.tracing.tracer import trace


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.block = nn.Sequential(nn.Linear(4, 4), self.norm, nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))  # type: ignore[no-any-return]


class _Branching(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else x * 2)


@pytest.mark.parametrize("kind", [_Block, _Branching])
def test_running_statistics_under_auto(kind: type[_Block]) -> None:
    """Trial runs, traces and their comparison leave them alone: each call counts once, in the model's own buffers."""
    torch.manual_seed(0)
    plain = kind()
    model = lfpgraph.wrap(copy.deepcopy(plain))
    own = dict(model.named_buffers())
    for _ in range(4):
        x = torch.randn(5, 4)
        torch.testing.assert_close(model(x), plain(x))
    for name, buffer in plain.named_buffers():
        assert dict(model.named_buffers())[name] is own[name], name
        torch.testing.assert_close(own[name], buffer)


def test_a_trace_of_real_values() -> None:
    """It leaves the model its parameters and buffers."""
    model = _Branching()
    tensors = {id(x) for x in (*model.parameters(), *model.buffers())}
    before = copy.deepcopy(model.state_dict())
    trace(model, torch.randn(5, 4), fallback="retrace")
    assert {id(x) for x in (*model.parameters(), *model.buffers())} == tensors
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
