"""The models inside the onnx package: published architectures whose weights are made by ConstantOfShape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import lfpgraph

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from lfpgraph.onnx import export, load  # noqa: E402

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = (
    "squeezenet",
    "shufflenet",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "densenet121",
    "zfnet512",
    "vgg19",
    "bvlc_alexnet",
)


def _run(path: Path, x: torch.Tensor) -> torch.Tensor:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", [n if n == "squeezenet" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_loads_learns_and_goes_out_again(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"light_{name}.onnx"
    model = load(path)
    (x,) = model.example(1)
    assert torch.allclose(model(x), _run(path, x), atol=1e-6)
    products = [n for n in onnx.load(path).graph.node if n.op_type in ("Conv", "Gemm")]
    weights = [p for p in model.parameters() if p.dim() > 1]
    assert len(weights) == len(products)

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in weights:  # they are all alike in the file
            torch.nn.init.kaiming_normal_(parameter)
    lfpgraph.wrap(model, engine="live")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        out = model(x)
        loss = cross_entropy(out.flatten(1).log(), torch.tensor([3])) if name != "densenet121" else out.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert all(np.isfinite(losses)) and losses[-1] < losses[0]
    lfpgraph.unwrap(model)
    export(model, tmp_path / "trained.onnx", (x,))
    assert torch.allclose(_run(tmp_path / "trained.onnx", x), model(x), rtol=1e-3, atol=1e-5)
    for which in ("input", "output"):  # as the file had them
        before, after = (
            [v.name for v in getattr(onnx.load(p).graph, which)] for p in (path, tmp_path / "trained.onnx")
        )
        assert [name for name in before if name in after] == after
