"""Positions that hand their relevance to tokens, and relevance that passes some channels alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import AttributionError

from .support.helpers import relative


class Words(nn.Module):
    """Learnt positions, and one attention with rotary angles; no biases."""

    def __init__(self, rotary: bool) -> None:
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(9, 8), nn.Embedding(6, 8), nn.Linear(8, 3, bias=False)
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.rotary = rotary

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        other = torch.cat([-x[..., 2:], x[..., :2]], -1)
        return (x * angles.cos() + other * angles.sin()) if self.rotary else x

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        z = torch.tanh(self.turned(q) * self.turned(k)) @ v.mT @ v
        return self.out((z.transpose(1, 2).flatten(2) + x).sum(1))


def test_positions_are_handed_to_tokens() -> None:
    """Tokens have the whole explained value then, each sample its own; before, positions had some of it."""
    torch.manual_seed(0)
    model, ids = Words(rotary=True).double().eval(), torch.randint(9, (4, 5))
    found = lfpgraph.attribute(model, ids, 1, positions="tokens")
    assert relative(found.sum(1), model(ids)[:, 1].detach()) < 1e-6
    few = lfpgraph.attribute(model, ids[2:, :4], 1, positions="tokens")  # by the same program
    assert relative(few.sum(1), model(ids[2:, :4])[:, 1].detach()) < 1e-6
    model = Words(rotary=False).double().eval()
    before = lfpgraph.attribute(model, ids, 1, "attnlrp", record="places")
    found = lfpgraph.attribute(model, ids, 1, positions="tokens")
    assert relative((found - before.inputs).sum(0), before.nodes["places"].sum(-1)) < 1e-9
    assert relative(found, before.inputs) > 0.01


def test_channels_alone() -> None:
    """Relevance through each channel adds up to the whole; one program serves all; what is computed stays the same."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)]
    model, x = nn.Sequential(*layers).double(), torch.randn(4, 1, 6, 6, dtype=torch.float64)
    for rules in ("deeplift", "lrp-0"):
        whole = lfpgraph.attribute(model, x, 1, rules)
        parts = [lfpgraph.attribute(model, x, 1, rules, condition={"1": [c]}) for c in range(3)]
        assert relative(sum(parts[1:], parts[0]), whole) < 1e-9 and relative(parts[0], whole) > 0.01
        both = lfpgraph.attribute(model, x, 1, rules, condition={"1": [0, 2], "3": [0, 1]}, details=True)
        assert relative(both.inputs, parts[0] + parts[2]) < 1e-9
        torch.testing.assert_close(both.output, model(x).detach())
    left = torch.zeros(4, 4)
    left[:, :2] = 1
    right = lfpgraph.attribute(model, x, 1, "lrp-0", condition={"1": 1 - left})
    assert relative(right + lfpgraph.attribute(model, x, 1, "lrp-0", condition={"1": left}), whole) < 1e-9


def test_what_is_refused() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 3)), torch.randn(2, 1, 6, 6)
    for how, message in (
        ({"condition": {"0": [3]}}, "'0' has channels 0 to 2, not .3."),
        ({"condition": {"0": torch.ones(5)}}, r"mask of shape \[5\] does not broadcast"),
        ({"condition": {"conv": [0]}}, "'conv' is no module or node"),
        ({"condition": [0]}, "must be a dict"),
        ({"positions": "tokens", "composite": "attnlrp"}, "no position embedding is added to tokens here"),
        ({"positions": "both"}, "positions='both'"),
        ({"positions": "tokens", "steps": 2}, "that look at one run"),
    ):
        with pytest.raises(AttributionError, match=message):
            lfpgraph.attribute(model, x, 1, **how)  # type: ignore[arg-type]
