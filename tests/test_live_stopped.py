"""A run that ends by an error: what was made until then, and is kept, gives feedback all the same."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import lfpgraph


class _Enough(Exception):
    """Raised by a hook that has the features it wants."""


def _layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Linear(5, 2)]


def _features(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer gives; nothing behind it runs."""
    taken: list[Tensor] = []

    def take(module: nn.Module, args: object, out: Tensor) -> None:
        taken.append(out)
        raise _Enough

    hook = layer.register_forward_hook(take)
    with pytest.raises(_Enough):
        model(x)
    hook.remove()
    return taken[0]


@pytest.mark.parametrize("before", [0, 6])
def test_features_of_a_run_that_a_hook_stops(before: int, caplog: pytest.LogCaptureFixture) -> None:
    """As those of a model that ends there, also after so many whole runs; and whole runs go on as ever."""
    layers, twins = _layers(), _layers()
    model = lfpgraph.wrap(nn.Sequential(*layers), engine="live")
    short = lfpgraph.wrap(nn.Sequential(*twins[:3]), engine="live")
    whole = lfpgraph.wrap(nn.Sequential(*_layers()), engine="live")
    x = torch.randn(3, 4)
    for _ in range(before):
        model(x).square().sum().backward()
    for _ in range(2):
        model.zero_grad()
        short.zero_grad()
        _features(model, layers[2], x).square().sum().backward()
        short(x).square().sum().backward()
        for ours, expected in zip(layers[:3], twins):
            for p, q in zip(ours.parameters(), expected.parameters()):
                torch.testing.assert_close(p.grad, q.grad)
        assert layers[3].weight.grad is None  # type: ignore[union-attr]
    model.zero_grad()
    model(x).square().sum().backward()
    whole(x).square().sum().backward()
    for p, q in zip(model.parameters(), whole.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_error_of_the_model_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """It comes out as it is, nothing is said, and the next run is right."""
    model = lfpgraph.wrap(nn.Sequential(*_layers()), engine="live")
    for wrong in (torch.randn(3, 7), torch.randn(3, 4, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="mat1|dtype"):
            model(wrong)
    twin = lfpgraph.wrap(nn.Sequential(*_layers()), engine="live")
    x = torch.randn(3, 4)
    for each in (model, twin):
        each(x).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
