"""`export_attribution`: a file's outputs and relevance are those of `lfpgraph.attribute`, for other batches too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.composites.table import COMPOSITES
from lfpgraph.errors import LfpGraphError, OnnxError

from .support.helpers import relative

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


# Those that compare with another run, and those that draw numbers anew at each one.
REFUSED = {"deeplift": "baseline", "feedback-alignment-refreshed": "no ONNX form", "brsf": "no ONNX form"}


def norm_cnn() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    model(torch.randn(32, 1, 6, 6))
    return model.eval(), torch.randn(3, 1, 6, 6)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.words(ids)).mean(1))


def text() -> tuple[nn.Module, Tensor]:
    return Text().eval(), torch.randint(0, 20, (3, 5))


def run(path: Path, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path))
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


@pytest.mark.parametrize("target", ["predicted", -1, "weights"])
@pytest.mark.parametrize(("build", "composite"), [(norm_cnn, "epsilon-plus"), (text, "attnlrp")])
def test_equals_attribute(build: Any, composite: str, target: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build()
    path = lfpgraph.onnx.export_attribution(model, x, tmp_path / "explain.onnx", composite, target=target)
    name, x = ("input" if build is norm_cnn else "ids"), torch.cat([x, x[:1]])
    given: dict[str, Any] = {"weights": torch.randn(4, 4).numpy()} if target == "weights" else {}
    found = run(path, {name: x.numpy(), **given})
    expected = lfpgraph.attribute(model, x, torch.from_numpy(given["weights"]) if given else target, composite)
    assert relative(torch.from_numpy(found["output"]), model(x)) < 1e-5
    assert relative(torch.from_numpy(found[f"relevance/{name}"]), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("composite", [c.name for c in COMPOSITES if c.name not in REFUSED])
def test_every_composite_equals_attribute(composite: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = norm_cnn()
    path = lfpgraph.onnx.export_attribution(model, x, tmp_path / "explain.onnx", composite)
    expected = lfpgraph.attribute(model, x, "predicted", composite)
    assert relative(torch.from_numpy(run(path, {"input": x.numpy()})["relevance/input"]), expected) < 1e-5


@pytest.mark.parametrize("composite", ["epsilon-plus", "gamma"])
def test_float64_equals_attribute(composite: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Text().eval().double(), torch.randint(0, 20, (3, 5))
    path = lfpgraph.onnx.export_attribution(model, x, tmp_path / "explain.onnx", composite)
    expected = lfpgraph.attribute(model, x, "predicted", composite)
    assert relative(torch.from_numpy(run(path, {"ids": x.numpy()})["relevance/ids"]), expected) < 1e-9


@pytest.mark.parametrize("composite", REFUSED)
def test_composites_that_are_no_fixed_walk_are_refused(composite: str, tmp_path: Path) -> None:
    with pytest.raises(LfpGraphError, match=REFUSED[composite]):
        lfpgraph.onnx.export_attribution(*norm_cnn(), tmp_path / "explain.onnx", composite)


def test_parameters_as_inputs_are_those_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = norm_cnn()
    path = lfpgraph.onnx.export_attribution(model, x, tmp_path / "explain.onnx", parameters="inputs")
    other, _ = norm_cnn()
    state = {n: v.numpy() for n, v in other.state_dict().items() if v.is_floating_point()}
    found = run(path, {"input": x.numpy(), **state})["relevance/input"]
    assert relative(torch.from_numpy(found), lfpgraph.attribute(other, x, "predicted", "attnlrp")) < 1e-5


@pytest.mark.parametrize("target", ["best", 4, True])
def test_refuses_a_target_that_is_none(target: Any, tmp_path: Path) -> None:
    with pytest.raises(OnnxError, match="target="):
        lfpgraph.onnx.export_attribution(*norm_cnn(), tmp_path / "explain.onnx", target=target)
    assert not list(tmp_path.iterdir())


def test_refuses_a_path_that_is_none() -> None:
    for write in (lfpgraph.onnx.export_attribution, lfpgraph.onnx.export_training_step):
        with pytest.raises(OnnxError, match="path=3 is no path of a file"):
            write(*norm_cnn(), 3)  # type: ignore[operator]
