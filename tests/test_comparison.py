"""`compare`: the same start and batches for every way, rates, budgets, angles, memory; the command on a user's own functions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import lfpgraph
from lfpgraph.comparison import zeroth_order
from lfpgraph.comparison.memory import LiveBytes
from lfpgraph.comparison.runs import angle
from lfpgraph.errors import CompositeError, InputError

from .support.helpers import run_cli

SOURCE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 3))

def data():
    torch.manual_seed(0)
    x = torch.randn(240, 4)
    y = x[:, :3].argmax(-1)
    return (x[:200], y[:200]), (x[200:], y[200:])
"""


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 3))


def _data(n: int = 120) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    return x, x[:, :3].argmax(-1)


def test_the_gradient_as_a_composite_is_backprop() -> None:
    """Same start, batches and draws: nothing may differ, and both are at no angle to the gradient; feedback is at some."""
    found = lfpgraph.compare(_net, _data(), _data(60), ("gradient", "backprop", "lfp"), steps=12, batch_size=32)
    same, plain, lfp = found.ways
    assert [run[2] for run in same.runs[0].curve] == [run[2] for run in plain.runs[0].curve]
    assert (
        same.tried == plain.tried
        and len(same.tried) == 3
        and plain.rate == max(plain.tried, key=plain.tried.__getitem__)
    )
    assert [steps for steps, _, _ in plain.runs[0].curve][-1] == 12
    for point in range(len(plain.runs[0].angles)):
        assert set(plain.angles(point)) == {"0.weight", "3.weight"}
        assert plain.mean_angle(point) < 0.1 and 1 < lfp.mean_angle(point) < 90
    assert min(way.peak_bytes for way in found.ways) > 0


def test_a_way_that_cannot_train_says_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).reshape(len(x), -1)

    x = torch.randn(40, 3, 4)
    data = x, x.mean(-1).repeat(1, 2)
    found = lfpgraph.compare(Odd(), data, data, ("backprop", "dfa"), loss=mse_loss, steps=3, rates=[1e-2], name="odd")
    assert found.metric == "loss" and not found.ways[0].failure and "cannot be projected" in found.ways[1].failure
    assert "cannot train this model" in found.to_html() and "cannot train" in str(found.rows())
    json.dumps(found.to_json(), allow_nan=False)


def test_seconds_are_a_budget() -> None:
    found = lfpgraph.compare(_net(), _data(), _data(60), ["backprop"], seconds=0.05, rates=[1e-2])
    steps, seconds, _ = found.ways[0].runs[0].curve[-1]
    assert steps > 3 and 0.05 <= seconds < 1


def test_mezo_moves_along_one_direction() -> None:
    """The gradient is the slope along its own direction, and the weights are where they were."""
    torch.manual_seed(0)
    model, (x, y) = _net().double().eval(), _data()
    x = x.double()
    before = {name: p.clone() for name, p in model.named_parameters()}
    loss = nn.functional.cross_entropy
    zeroth_order(1e-4, loss)(model, x, y)
    moved = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss(model(x), y).backward()
    along = sum((moved[name] * p.grad).sum() for name, p in model.named_parameters())  # slope times the true slope
    count = sum(p.numel() for p in model.parameters())
    slope = math.sqrt(float(sum((m**2).sum() for m in moved.values())) / count)  # abs(z)^2 is about the count
    assert along > 0 and 0.8 < math.sqrt(along) / slope < 1.25
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name])


def test_live_bytes() -> None:
    x = torch.zeros(1000)
    with LiveBytes() as live:
        y = x + 1
        y.mul_(2).view(10, 100)
        del y
        x + 1, x.view(10, 100)
    assert live.peak == 4000


def test_angles() -> None:
    a = torch.tensor([1.0, 0.0])
    assert angle(a, torch.tensor([0.0, 2.0])) == pytest.approx(90) and angle(a, -a) == pytest.approx(180)
    assert angle(a, 0 * a) is None and angle(None, a) is None and angle(a / 0, a) is None


def test_refusals() -> None:
    data = _data()
    with pytest.raises(CompositeError, match="near it: backprop"):
        lfpgraph.compare(_net, data, data, ["backpro"])
    with pytest.raises(InputError, match="not both"):
        lfpgraph.compare(_net, data, data, ["lfp"], steps=3, seconds=2.0)
    with pytest.raises(InputError, match="each once"):
        lfpgraph.compare(_net, data, data, ["lfp", "lfp"])
    with pytest.raises(InputError, match="unwrapped"):
        lfpgraph.compare(lfpgraph.wrap(_net(), "lfp"), data, data, ["lfp"])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compared.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    names = ("compare", "compared:build", "compared:data", "--ways", "lfp, dfa,mezo", "--steps", "5", "--rates", "1e-2")
    assert run_cli(monkeypatch, *names, "--seeds", "2", "--json", "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [way["way"] for way in found["ways"]] == ["lfp", "dfa", "mezo"]
    assert all(len(way["runs"]) == 2 and way["peak_bytes"] > 0 for way in found["ways"])
    assert "3.weight" in (tmp_path / "comparison.html").read_text()
    assert run_cli(monkeypatch, *names[:-1], "much") == 1
