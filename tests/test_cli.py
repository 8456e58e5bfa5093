"""`lfpgraph train` on a tiny model and data of the user's own; the demo (slow)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lfpgraph import cli

SOURCE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))

def data():
    torch.manual_seed(0)
    x = torch.randn(240, 4)
    y = x[:, :3].argmax(-1)
    return (x[:200], y[:200]), (x[200:], y[200:])

def datasets():
    (a, b), (c, d) = data()
    return torch.utils.data.TensorDataset(a, b), torch.utils.data.TensorDataset(c, d)

def wrong():
    return 3
"""


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lfpgraph", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
        raise SystemExit(0)
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_model.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_model", None)
    return tmp_path


@pytest.mark.parametrize("source", ["data", "datasets"])
def test_train(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """It learns, and writes the report, the weights and the figures."""
    options = ["--epochs", "12", "--lr", "0.01", "--json", "r.json", "--save", "w.safetensors"]
    assert _run(monkeypatch, "train", "own_model:build", f"own_model:{source}", *options) == 0
    (result,) = json.loads((folder / "r.json").read_text())
    assert result["runs"]["lfp"]["by_epoch"][-1] > 0.8
    assert result["runs"]["lfp"]["rewarded"] == [4, 4]
    assert (folder / "w.safetensors").stat().st_size > 300
    page = (folder / "report.html").read_text()
    assert "own_model:build" in page and "data:image/png;base64," in page and "http" not in page


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        ("own_model:wrong", "own_model:data", [], "nn.Module"),
        ("own_model:build", "own_model:wrong", [], "(train, test)"),
        ("own_model:missing", "own_model:data", [], "build"),
        ("own_model:build", "own_model:data", ["--loss", "nothing"], "nothing"),
        ("own_model:build", "own_model:data", ["--composite", "nothing"], "lfp-epsilon"),
    ],
)
def test_bad_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    model: str, data: str, options: list[str], message: str,
) -> None:  # fmt: skip
    assert _run(monkeypatch, "train", model, data, *options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (folder / "report.html").exists()


@pytest.mark.slow
def test_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LFP within a point of backprop for the ViT and the CNN; the step CNN at 94 % or more."""
    assert _run(monkeypatch, "demo", "--json", "demo.json") == 0
    results = json.loads((folder / "demo.json").read_text())
    last = [{way: run["by_epoch"][-1] for way, run in r["runs"].items()} for r in results]
    assert all(r["lfp"] >= r["backprop"] - 0.01 for r in last[:2]) and last[2]["lfp"] >= 0.94
