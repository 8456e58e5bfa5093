"""`compare`: the same start and batches for every way, rates, budgets, angles, memory; the command on a user's own functions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lfpgraph.models_zoo.other_kinds import GCN
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

import lfpgraph
from benchmarks.compared import FOLDER, PAGE, TASKS, table, with_table
from lfpgraph.cli.functions import examples
from lfpgraph.comparison import Learner, Method, zeroth_order
from lfpgraph.comparison.examples import Examples, held_back
from lfpgraph.comparison.memory import LiveBytes
from lfpgraph.comparison.runs import _schedule, angle
from lfpgraph.errors import CompositeError, InputError, TargetError

from .support.helpers import run_cli

SOURCE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 3))

net = build()

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
    assert str(found.table().caption).startswith("dfa cannot train this model") and found.table().row_count == 2
    with pytest.raises(CompositeError, match="unknown ways 'lpf', near it: lfp.*'dfaa', near it: dfa"):
        lfpgraph.compare(Odd(), data, data, ("lpf", "dfaa", "backprop"), loss=mse_loss)
    json.dumps(found.to_json(), allow_nan=False)


def test_what_is_held_back_is_not_trained_on() -> None:
    x = torch.arange(40.0)
    (rest, _), (validation, labels) = held_back((x, x + 1))
    assert len(validation) == 10 and torch.equal(labels, validation + 1)
    assert torch.equal(torch.cat([rest, validation]).sort().values, x)
    assert torch.equal(held_back((x, x))[1][0], validation)


def test_the_rate_of_the_least_loss_and_runs_that_know_nothing_of_each_other() -> None:
    """A rate at which the loss is not finite is never the best; what other rates learnt is not there when the best one runs."""
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), _data()[0]
    clipless = Method("plain", None, optimizer="SGD", rates=(1e-9, 0.3, 1e30), clip=None)
    (tried,) = lfpgraph.compare(model, (x, x), (x, x), [clipless], loss=mse_loss, steps=8).ways
    assert not math.isfinite(tried.tried[1e30]) and tried.tried[0.3] < tried.tried[1e-9] and tried.rate == 0.3
    alone = replace(clipless, rates=(0.3,))
    (one,) = lfpgraph.compare(model, (x, x), (x, x), [alone], loss=mse_loss, steps=8).ways
    assert [point[2] for point in one.runs[0].curve] == [point[2] for point in tried.runs[0].curve]


def test_scores_are_of_the_model_in_eval_mode() -> None:
    model, data = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)), _data(300)
    (way,) = lfpgraph.compare(model, data, data, ["backprop"], steps=2, rates=[1e-9]).ways
    right = (model.eval()(data[0]).argmax(1) == data[1]).float().mean()
    assert way.qualities == [pytest.approx(float(right))]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    shares = [_schedule(spent) for spent in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert shares == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])


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
    assert run_cli(monkeypatch, "compare", "compared:net", *names[2:]) == 1


def test_a_graph_as_one_batch() -> None:
    """Several inputs, labels that do not count, rates chosen on labels that are held back; a way that fails ends no other."""
    torch.manual_seed(0)
    x = torch.randn(120, 8)
    labels = x[:, :3].argmax(1)
    edges = (labels[:, None] == labels).nonzero()[::9].T
    parts = [labels.clone(), labels.clone()]
    parts[0][80:], parts[1][:80] = -100, -100
    train, test = (DataLoader([((x, edges), y)], batch_size=None) for y in parts)  # type: ignore[arg-type]
    broken = Method("broken", learner=_Broken)
    ways = ("backprop", broken, "lfp", "auglocal", "noprop")
    found = lfpgraph.compare(lambda: GCN(8, 16, 3), train, test, ways, steps=30, rates=[1e-5, 3e-2])
    plain, failed, lfp, local, noprop = found.ways
    assert plain.rate == 3e-2 and plain.qualities[0] > 0.5 and local.qualities[0] > 0.5 and lfp.qualities[0] > 0.5
    assert failed.failure == "RuntimeError: out of luck" and "needs equal blocks" in noprop.failure
    assert plain.kept_bytes > 3 * sum(4 * p.numel() for p in GCN(8, 16, 3).parameters())


class _Broken(Learner):
    def gradients(self, inputs: object, labels: Tensor) -> None:
        raise RuntimeError("out of\nluck")


class _Named(nn.Module):
    """Takes its inputs by name, and returns a loss first, then a dict with states and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"loss": a.sum(), "out": self.net(a + b), "states": b}


def test_inputs_by_name() -> None:
    (x, y), model = _data(), _Named()
    data = {"a": x, "b": torch.zeros_like(x)}, y
    ways = lfpgraph.compare(model, data, data, ("backprop", "mezo"), steps=20, rates=[3e-2, 1e-2]).ways
    assert ways[0].qualities[0] > 0.5 and not ways[1].failure
    batch, labels = next(Examples.of(data, "data").batches(0, 7))
    assert batch["a"].shape == (7, 4) and len(labels) == 7


def test_refusals_of_data_and_rates() -> None:
    x, y = _data()
    for rate in (-1.0, math.nan, 0.0):
        with pytest.raises(InputError, match="rates must be finite and above zero"):
            lfpgraph.compare(_net, (x, y), (x, y), ["lfp"], rates=[rate])
    with pytest.raises(InputError, match="What belongs together as a whole"):
        lfpgraph.compare(_net, ((x, torch.zeros(2, 7)), y), (x, y), ["lfp"])
    with pytest.raises(InputError, match="does not run on the first batch"):
        lfpgraph.compare(_net, (x[:, :3], y), (x, y), ["lfp"])
    with pytest.raises(InputError, match="must be a pair"):
        lfpgraph.compare(_net, [1, 2, 3], (x, y), ["lfp"])


def test_numbers_need_another_loss_than_the_default() -> None:
    """cross_entropy of one output is 0 whatever it is, and makes no sense of labels that are no shares."""
    x, y = _data()
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    with pytest.raises(InputError, match="--loss mse"):
        lfpgraph.compare(net, (x, x[:, :1]), (x, x[:, :1]), ["backprop"])
    shares = nn.functional.one_hot(y, 3).float()
    with pytest.raises(InputError, match="add up to 1"):
        lfpgraph.compare(_net, (x, 2 * shares), (x, shares), ["backprop"])
    (way,) = lfpgraph.compare(_net, (x, shares), (x, shares), ["backprop"], steps=2, rates=[1e-2]).ways
    assert not way.failure and way.qualities[0] > 0.1


def test_data_of_the_command() -> None:
    """Pairs whose inputs are several arrays, datasets of samples with inputs by name, DataLoaders."""
    x, y = torch.randn(6, 2).double(), torch.arange(6)
    inputs, labels = examples(((((x.numpy(), x), y)), (x, y)), "t")[0]
    assert inputs[0].dtype == torch.float32 and inputs[1].shape == (6, 2) and torch.equal(labels, y)
    samples = [({"a": x[i], "b": x[i, 0]}, y[i]) for i in range(6)]
    named, loader = examples((samples, DataLoader([(x, y)], batch_size=None)), "t")  # type: ignore[arg-type]
    assert named[0]["b"].shape == (6,) and torch.equal(named[1], y) and isinstance(loader, DataLoader)
    with pytest.raises(TargetError, match="equally many"):
        examples(((({"a": x}, y[:3])), (x, y)), "t")


@pytest.mark.parametrize("name", TASKS)
def test_tables_of_the_page_are_those_of_the_runs(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(f"<!-- compared: {name} -->\n") == 1
    assert with_table(page, name, table(FOLDER / f"{name}.json")) == page
