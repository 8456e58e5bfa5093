"""`lfpgraph train` on a tiny model and data of the user's own; the demo (slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from .support.helpers import enter, run_cli

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

def needs(size):
    return build()

def fails():
    raise ValueError("no weights here")

def frozen():
    return build().requires_grad_(False)

def numpy_data():
    (x, y), test = data()
    return (x.double().numpy(), y.int().numpy()), test

def ragged():
    part = [(torch.zeros(2), 0), (torch.zeros(3), 1), (torch.zeros(3), 1)]
    return part, part

def regressor():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

def regression():
    (x, _), (z, _) = data()
    return (x, x[:, :1]), (z, z[:, :1])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_model.py").write_text(SOURCE)
    enter(monkeypatch, tmp_path, "own_model")
    return tmp_path


@pytest.mark.parametrize("source", ["data", "datasets", "numpy_data"])
def test_train(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """It learns, and writes the report, the weights and the figures."""
    options = ["--epochs", "12", "--lr", "0.01", "--json", "r.json", "--save", "w.safetensors"]
    assert run_cli(monkeypatch, "train", "own_model:build", f"own_model:{source}", *options) == 0
    (result,) = json.loads((folder / "r.json").read_text())
    assert result["runs"]["lfp"]["by_epoch"][-1] > 0.8
    assert result["runs"]["lfp"]["rewarded"] == [4, 4]
    assert (folder / "w.safetensors").stat().st_size > 300
    page = (folder / "report.html").read_text()
    assert "own_model:build" in page and "data:image/png;base64," in page and "http" not in page


def test_train_at_suggested_rates(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for each way, found by a range test and shown; the model that is trained is as it was before the test."""
    options = ["--epochs", "2", "--suggest-lr", "--json", "r.json"]
    assert run_cli(monkeypatch, "train", "own_model:build", "own_model:data", *options) == 0
    (result,) = json.loads((folder / "r.json").read_text())
    rates = {way: run["lr"] for way, run in result["runs"].items()}
    assert set(rates) == {"lfp", "backprop"} and all(1e-4 < rate < 1 for rate in rates.values())
    assert f"lfp: rate {rates['lfp']:g}, backprop: rate {rates['backprop']:g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        ("own_model:wrong", "own_model:data", [], "nn.Module"),
        ("own_model:build", "own_model:wrong", [], "(train, test)"),
        ("own_model:missing", "own_model:data", [], "build"),
        ("own_model:needs", "own_model:data", [], "size"),
        ("own_model:fails", "own_model:data", [], "no weights here"),
        ("own_model:frozen", "own_model:data", [], "no parameter that requires a gradient"),
        ("own_model:build", "own_model:ragged", [], "equal shapes"),
        ("no_such_module:build", "own_model:data", [], "no_such_module"),
        ("own_model", "own_model:data", [], "module:function"),
        ("own_model:build", "own_model:data", ["--loss", "nothing"], "cross_entropy"),
        ("own_model:build", "own_model:data", ["--loss", "relu"], "mse_loss"),
        ("own_model:build", "own_model:data", ["--optimizer", "LBFGS"], "AdamW"),
        ("own_model:build", "own_model:data", ["--out", "own_model.py/report.html"], "own_model.py"),
        ("own_model:build", "own_model:data", ["--composite", "nothing"], "lfp-epsilon"),
    ],
)
def test_bad_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    model: str, data: str, options: list[str], message: str,
) -> None:  # fmt: skip
    assert run_cli(monkeypatch, "train", model, data, *options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (folder / "report.html").exists()


def test_check(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The status says whether all is equal; what a tolerance of nothing refuses is said, too."""
    options = ["check", "own_model:build", "--shape", "4"]
    assert run_cli(monkeypatch, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"forward": 0.0, "rows": [], "skipped": {}}
    pytest.importorskip("lxt")
    monkeypatch.setattr("own_model.build", lambda: torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(-1)))
    assert run_cli(monkeypatch, *options, "--against", "lxt") == 0
    assert run_cli(monkeypatch, *options, "--against", "lxt", "--tolerance", "0") == 1
    assert "softmax" in capsys.readouterr().out
    assert run_cli(monkeypatch, *options, "--against", "zennit") == 1
    assert "lxt" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the package that is installed; and the command line is there without its script."""
    from importlib.metadata import version
    from importlib.util import find_spec

    assert run_cli(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"lfpgraph {version('lfpgraph')}\n"
    assert find_spec("lfpgraph.__main__") is not None


def test_train_regression(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short name of a loss, no twin, a folder that is not there yet; torch's threads are as before."""
    threads = torch.get_num_threads()
    options = [
        "--loss",
        "mse",
        "--epochs",
        "2",
        "--no-compare",
        "--out",
        "new/r.html",
        "--json",
        "r.json",
        "--threads",
        "1",
    ]
    assert run_cli(monkeypatch, "train", "own_model:regressor", "own_model:regression", *options) == 0
    (result,) = json.loads((folder / "r.json").read_text())
    assert result["metric"] == "loss" and list(result["runs"]) == ["lfp"] and result["step_ratio"] is None
    assert (folder / "new" / "r.html").exists() and torch.get_num_threads() == threads


@pytest.mark.slow
def test_demo_one_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three models run and are shown; backprop reaches only the last layer behind steps."""
    assert run_cli(monkeypatch, "demo", "--epochs", "1", "--json", "demo.json") == 0
    results = json.loads((folder / "demo.json").read_text())
    assert [len(r["runs"]["lfp"]["by_epoch"]) for r in results] == [1, 1, 1]
    assert [r["runs"]["lfp"]["rewarded"] for r in results[1:]] == [[8, 8], [8, 8]]
    assert results[2]["runs"]["backprop"]["rewarded"] == [2, 8]
    assert not any(row["origin"] == "derived" for r in results for row in r["operations"])
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 3


@pytest.mark.slow
def test_demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LFP within a point of backprop for the ViT and the CNN; the step CNN at 94 % or more."""
    assert run_cli(monkeypatch, "demo", "--json", "demo.json") == 0
    results = json.loads((folder / "demo.json").read_text())
    last = [{way: run["by_epoch"][-1] for way, run in r["runs"].items()} for r in results]
    assert all(r["lfp"] >= r["backprop"] - 0.01 for r in last[:2]) and last[2]["lfp"] >= 0.94


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("coverage", "own_model:alone", "--json"), None),
        (("coverage", "--json", "own_model:alone"), None),
        (("coverage", "own_model:alone", "--json", "r.json"), "r.json"),
        (("coverage", "--json", "r.json", "own_model:alone"), "r.json"),
        (("coverage", "own_model:alone", "--json=figures"), "figures"),
        (("check", "own_model:build", "--json", "figures", "--shape", "4"), "figures"),
        (("zoo", "--json"), None),
        (("reproduce", "--list", "--json", "l.json"), "l.json"),
    ],
)
def test_json_with_and_without_a_file(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    file: str | None,
) -> None:
    """Printed alone, or written beside what is printed."""
    monkeypatch.setattr("own_model.alone", lambda: (torch.nn.Linear(4, 3), torch.randn(2, 4)), raising=False)
    assert run_cli(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    json.loads(printed if file is None else (folder / file).read_text())
    assert file is None or not printed.startswith(("{", "["))
