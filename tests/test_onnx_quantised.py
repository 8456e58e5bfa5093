"""Files that onnxruntime's quantiser writes: they run as there, and with `dequantise=True` their weights train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lfpgraph

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from lfpgraph.onnx import OrtTrainer, export_training_step, load  # noqa: E402

from .support.onnx_files import make  # noqa: E402

DRAW = np.random.default_rng(0)


def floats(*size: int) -> Any:
    return DRAW.normal(size=size).astype(np.float32)


X = floats(4, 2, 6, 6)


def convolutional(path: Path) -> Path:
    """A convolution, an average over its places and two layers, the second of them a MatMul."""
    node = helper.make_node
    nodes = [node("Conv", ["x", "k", "kb"], ["a"], name="conv"), node("Relu", ["a"], ["b"], name="relu"),
             node("GlobalAveragePool", ["b"], ["c"], name="pool"), node("Flatten", ["c"], ["d"], name="flat"),
             node("Gemm", ["d", "w", "wb"], ["e"], transB=1, name="gemm"), node("Relu", ["e"], ["f"], name="relu2"),
             node("MatMul", ["f", "v"], ["y"], name="matmul")]  # fmt: skip
    values = {"k": floats(5, 2, 3, 3), "kb": floats(5), "w": floats(6, 5), "wb": floats(6), "v": floats(6, 3)}
    onnx.save(make(nodes, {"x": ["n", 2, 6, 6]}, ["y"], values), path)
    return path


def quantised(way: str, folder: Path) -> Path:
    from onnxruntime import quantization as q

    plain, path = convolutional(folder / "plain.onnx"), folder / "quantised.onnx"
    channels = way.endswith("channels")
    if way.startswith("dynamic"):
        q.quantize_dynamic(plain, path, per_channel=channels)
        return path

    class Data(q.CalibrationDataReader):
        left = [{"x": X}, {"x": -X}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    kind = q.QuantFormat.QOperator if way.startswith("operators") else q.QuantFormat.QDQ
    activations = q.QuantType.QUInt16 if way == "16 bits" else q.QuantType.QUInt8
    Data.left = [{"x": X}, {"x": -X}]
    q.quantize_static(plain, path, Data(), kind, per_channel=channels, activation_type=activations)
    return path


def outputs(path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


SLOW = [pytest.param(way, 0, marks=pytest.mark.slow) for way in ("dynamic", "dynamic channels", "pairs", "16 bits")]


@pytest.mark.parametrize(
    ("way", "seed"), [("pairs channels", 0), *(("operators", n) for n in (0, 2, 4)), ("operators channels", 1), *SLOW]
)
def test_the_quantisers_files_run_and_train(
    way: str, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "DRAW", np.random.default_rng(seed))
    if way == "dynamic channels" and ort.__version__.startswith("1.23."):
        pytest.skip("onnxruntime 1.23 (the last for Python 3.10) has no ConvInteger for signed weights")
    torch.manual_seed(0)
    path, x = quantised(way, tmp_path), torch.from_numpy(X)
    expected = outputs(path)
    frozen = load(path)
    np.testing.assert_allclose(frozen(x).detach(), expected, rtol=1e-5, atol=1e-5)
    assert ("dequantise=True" in caplog.text) == (not list(frozen.parameters()))
    model = load(path, dequantise=True)
    np.testing.assert_allclose(model(x).detach(), expected, rtol=1e-5, atol=1e-5)
    plain = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "plain.onnx")).graph.initializer}
    weights = {name.partition("_")[0]: p for name, p in model.named_parameters() if name.endswith(".value")}
    assert {"k", "w", "v"} <= set(weights)
    for name, parameter in weights.items():  # as they were, up to rounding; some lie transposed
        np.testing.assert_allclose(np.sort(parameter.detach(), None), np.sort(plain[name], None), atol=0.05)
    lfpgraph.wrap(model)
    update, losses = torch.optim.SGD(model.parameters(), 3e-4), []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert all(float(p.grad.abs().sum()) > 0 for name, p in model.named_parameters() if name.endswith(".value"))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("way", ["pairs", "operators"])
def test_a_quantised_file_trains_without_torch(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in torch; the operators' sums of whole numbers are float64 there, of which onnxruntime has no convolution."""
    monkeypatch.setitem(globals(), "DRAW", np.random.default_rng(4))
    model, x = load(quantised(way, tmp_path), dequantise=True), torch.from_numpy(X)
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "step.onnx"))
    losses = [trainer.step(X, np.array([0, 1, 2, 0]), 3e-4).metrics["loss"] for _ in range(10)]
    assert losses[-1] < losses[0]
    lfpgraph.wrap(model)
    update = torch.optim.SGD(model.parameters(), 3e-4)
    for expected in losses:
        loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
        np.testing.assert_allclose(expected, loss.item(), rtol=1e-4)
        update.zero_grad()
        loss.backward()
        update.step()
