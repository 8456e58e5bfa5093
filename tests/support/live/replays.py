"""What the tests of runs that are only compared share (`live.repeats`)."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from lfpgraph.live.repeats.replay import Replay

__all__ = ["SETTLED", "compare", "replayed", "step"]

SETTLED = 5  # steps after which a run is only compared


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each run that was only compared was as expected to its end."""
    found: list[bool] = []
    amend = Replay.amend

    def noted(self: Replay, tensors: Any) -> bool:
        found.append(amend(self, tensors))
        return found[-1]

    monkeypatch.setattr(Replay, "amend", noted)
    return found


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in found.items():
        assert (value - expected[name]).norm() <= 1e-12 * expected[name].norm(), name
