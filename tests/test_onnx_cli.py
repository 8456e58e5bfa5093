"""`lfpgraph export`, ONNX files as targets, and the trainer's own face: save, restore, fit, errors, no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lfpgraph.errors import OnnxError

from .support.helpers import run_cli
from .support.onnx_files import small_mlp

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from lfpgraph.onnx import OrtTrainer, export_training_step  # noqa: E402

SOURCE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnx_target", raising=False)
    (tmp_path / "onnx_target.py").write_text(SOURCE)
    return tmp_path


def test_export_and_coverage(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "export", "onnx_target:build", "m.onnx") == 0
    assert (
        run_cli(monkeypatch, "export", "onnx_target:build", "s.onnx", "--what", "step", "--shape", "4", "--outside")
        == 0
    )
    assert run_cli(monkeypatch, "export", "onnx_target:build", "f.onnx", "--what", "forward", "--external-data") == 0
    assert run_cli(monkeypatch, "coverage", "m.onnx") == 0
    assert "4 of 4 tensors receive reward" in capsys.readouterr().out
    names = {t.name for t in onnx.load("m.onnx").graph.initializer}
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= names
    assert OrtTrainer("s.onnx").predict(np.zeros((3, 4))).shape == (3, 3)
    assert (here / "s.safetensors").is_file()
    # what has been loaded goes out again as a step
    assert run_cli(monkeypatch, "export", "m.onnx", "again.onnx", "--what", "step", "--optimizer", "sgd") == 0
    assert set(OrtTrainer("again.onnx").parameters()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    # and a part of it trains
    part = ("--train-step", "part.onnx", "--trainable", "2.*", "--reward", "softmax")
    assert run_cli(monkeypatch, "export", "m.onnx", *part) == 0
    assert OrtTrainer("part.onnx").description["parameters"] == ["2.weight", "2.bias"]


def test_bad_input_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.onnx").write_bytes(b"nothing")
    for arguments, word in (
        (("export", "onnx_target:build", "m.onnx", "--what", "all"), "step"),
        (("export", "onnx_target:build", "m.onnx", "--shape", "a,b"), "list of sizes"),
        (("export", "onnx_target:build", "m.onnx", "--trainable", "3.*"), "'3.*'"),
        (("export", "onnx_target:build"), "--train-step"),
        (("export", "onnx_target:build", "m.onnx", "--weights", "none.safetensors"), "none.safetensors"),
        (("export", "onnx_target:build", str(here)), "folder"),
        (("coverage", "bad.onnx"), "no ONNX file"),
        (("coverage", "absent.onnx"), "absent.onnx"),
    ):
        assert run_cli(monkeypatch, *arguments) == 1
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )
    path = tmp_path_factory.mktemp("step") / "s.onnx"
    return export_training_step(model, torch.randn(4, 4), path, optimizer="adam")


def data(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return x, x[:, :3].argmax(-1)


def test_fit_save_and_restore(step: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()
    trainer = OrtTrainer(step)
    seen: list[float] = []

    def rate(done: float) -> float:
        seen.append(done)
        return 1e-2

    history = trainer.fit(x, y, epochs=20, batch_size=32, lr=rate, validation=(x, y), progress=True)
    assert len(history) == 20 and history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["val_accuracy"] > 0.9
    assert seen[0] == 0 and seen == sorted(seen) and max(seen) < 1 and len(seen) == 60
    assert "60/60" in capsys.readouterr().err
    trainer.save(tmp_path / "t.safetensors")
    later = [trainer.step(x, y, 1e-2).metrics["loss"] for _ in range(3)]
    other = OrtTrainer(step)
    other.restore(tmp_path / "t.safetensors")
    assert [other.step(x, y, 1e-2).metrics["loss"] for _ in range(3)] == later
    trainer.save(tmp_path / "weights.safetensors", optimizer=False)
    other.restore(tmp_path / "weights.safetensors")
    assert not any(value.any() for value in other.optimizer_state().values())
    np.testing.assert_array_equal(other.predict(x), trainer.predict(x))
    from safetensors.numpy import load_file

    assert set(load_file(tmp_path / "weights.safetensors")) == set(trainer.state_dict())
    assert int(trainer.state_dict()["1.num_batches_tracked"]) == 63


def test_what_does_not_fit_changes_nothing(step: Path, tmp_path: Path) -> None:
    x, y = data(8)
    trainer = OrtTrainer(step)
    before = trainer.state_dict()
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for call, word in (
        (lambda: trainer.step(x[:, :3], y, 0.1), "has shape .8, 3.; the file takes"),
        (lambda: trainer.step(x, y[:3], 0.1), "has 8 of 'batch' and 'target' has 3"),
        (lambda: trainer.step(x, y[:1], 0.1), "give as many of both"),
        (lambda: trainer.step(x[:0], y[:0], 0.1), "at least one sample"),
        (lambda: trainer.step(x, y + 100, 0.1), "class numbers from 0 to"),
        (lambda: trainer.step(x, -y - 1, 0.1), "class numbers from 0 to"),
        (lambda: trainer.step(x, y, None), "lr=None must be a number"),
        (lambda: trainer.step(x, y, float("nan")), "lr=nan must be a number"),
        (lambda: trainer.step(x, y, -1.0), "lr=-1.0 must be a number"),
        (lambda: trainer.fit(x, y, epochs=1.5), "epochs=1.5 must be a whole number"),
        (lambda: trainer.fit(x, y, seed="a"), "seed='a' must be"),
        (lambda: trainer.fit(x, y, validation=x), "a pair of inputs and labels"),
        (lambda: trainer.fit(x, y, validation=(x, y[:3])), "as many labels as inputs"),
        (lambda: trainer.predict(x, batch_size=0), "batch_size=0"),
        (lambda: trainer.predict(5), "dimensions, the array given 0"),
        (lambda: trainer.save(5), "no path of a file"),
        (lambda: trainer.load_state_dict(None), "takes a dict of arrays"),
        (lambda: OrtTrainer(step, threads=-1), "threads=-1"),
        (lambda: OrtTrainer(step, providers=["NoSuchProvider"]), "has no NoSuchProvider; it has"),
        (lambda: trainer.step((x, x), y, 0.1), "takes 1"),
        (lambda: trainer.step({"z": x}, y, 0.1), "input"),
        (lambda: trainer.step(x, y.astype(np.float32), 0.1), "whole numbers"),
        (lambda: trainer.step(x, y[None], 0.1), "dimensions"),
        (lambda: trainer.step(np.array(["a"]), y, 0.1), "array of"),
        (lambda: trainer.fit(x, y[:3]), "8 inputs and 3 targets"),
        (lambda: trainer.fit(x, y, epochs=0), "at least 1"),
        (lambda: trainer.restore(tmp_path / "bad.safetensors"), "cannot read"),
        (lambda: trainer.restore(tmp_path / "absent.safetensors"), "cannot read"),
        (lambda: trainer.load_state_dict({"0.weight": np.zeros((16, 4))}), "missing"),
        (lambda: trainer.load_state_dict({**before, "0.bias": np.zeros(3)}), "shape"),
    ):
        with pytest.raises(OnnxError, match=word):
            call()
    for name, value in trainer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(step.read_bytes())
    with pytest.raises(OnnxError, match="no file"):
        OrtTrainer(alone).predict(x)


def test_the_trainer_runs_where_torch_is_absent(step: Path) -> None:
    """In a process whose import of torch fails as if it were not installed."""
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "networkx", "onnx", "scipy", "sklearn"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NoTorch())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "torch" else real(name, *a)
import numpy as np
import lfpgraph
from lfpgraph.onnx import OrtTrainer
trainer = OrtTrainer(sys.argv[1])
x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
history = trainer.fit(x, x[:, :3].argmax(-1), epochs=10, lr=1e-2)
assert history[-1]["loss"] < history[0]["loss"]
assert trainer.predict(x).shape == (30, 3) and "torch" not in sys.modules
try:
    lfpgraph.wrap
except AttributeError as error:
    assert "needs torch" in str(error)
try:
    lfpgraph.onnx.load
except lfpgraph.LfpGraphError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(step)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "lfpgraph[onnx]" in done.stdout


def test_a_part_of_a_file_learns_a_new_label_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = small_mlp()
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.node.append(onnx.helper.make_node("Softmax", ["scores"], ["y"], axis=1))
    onnx.save(proto, tmp_path / "file.onnx")
    arguments = ("--train-step", str(tmp_path / "step.onnx"), "--trainable", "fc2.*", "--reward", "softmax")
    assert run_cli(monkeypatch, "export", str(tmp_path / "file.onnx"), *arguments) == 0
    trainer = OrtTrainer(tmp_path / "step.onnx")
    start, x = trainer.parameters(), np.random.default_rng(1).normal(size=(288, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    history = trainer.fit(x[:192], y[:192], epochs=20, batch_size=16, lr=5e-2, validation=(x[192:], y[192:]))
    assert history[-1]["val_accuracy"] > 0.75 > history[0]["val_accuracy"]
    moved = {name for name, value in trainer.parameters().items() if not np.array_equal(value, start[name])}
    assert moved == {"fc2.weight", "fc2.bias"}
