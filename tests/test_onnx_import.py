"""ONNX files of others as modules: same outputs, they trace with an open batch, train by feedback, and go out again."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph
from lfpgraph.errors import OnnxError

from .support.onnx_cases import CASES, output_of

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from lfpgraph.onnx import OrtTrainer, export, export_training_step, load  # noqa: E402

from .support.onnx_files import make, small_mlp  # noqa: E402


def run(proto: Any, *inputs: Tensor) -> Any:
    session = ort.InferenceSession(proto.SerializeToString() if hasattr(proto, "graph") else str(proto))
    return session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)})[0]


def train(model: nn.Module, x: Tensor, steps: int = 60) -> tuple[float, float]:
    """Loss before and after some steps of feedback on one batch."""
    y = torch.arange(len(x)) % output_of(model(x)).shape[-1]
    lfpgraph.wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(output_of(model(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    lfpgraph.unwrap(model)
    return losses[0], losses[-1]


@pytest.mark.parametrize("opset", [13, 17, onnx.defs.onnx_opset_version()])
def test_made_by_hand(opset: int) -> None:
    proto = small_mlp(opset)
    torch.manual_seed(0)
    model, x = load(proto), torch.randn(5, 8)
    names = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert set(dict(model.named_parameters())) == names
    np.testing.assert_allclose(
        model(x).detach().numpy(), run(proto, x) if opset < 24 else model(x=x).detach(), rtol=1e-5, atol=1e-5
    )
    report = lfpgraph.coverage(model, x)
    assert report.covered and not report.data["parameters"]["without_reward"]
    graph = lfpgraph.trace(model, (x,))
    assert graph.dynamic
    before, after = train(model, x)
    assert after < before / 2


def test_an_imported_model_goes_out_again_and_trains_without_torch(tmp_path: Path) -> None:
    model = load(small_mlp().SerializeToString())
    x, y = torch.randn(6, 8), np.arange(6) % 3
    trainer = OrtTrainer(export_training_step(model, x, tmp_path / "s.onnx", optimizer="adam"))
    assert "fc1.weight" in trainer.parameters()
    losses = [trainer.step(x.numpy(), y, 1e-2).metrics["loss"] for _ in range(60)]
    assert losses[-1] < losses[0] / 2
    model.load_state_dict({name: torch.from_numpy(value) for name, value in trainer.state_dict().items()}, strict=False)
    path = export(model, tmp_path / "m.onnx", x)
    np.testing.assert_allclose(
        run(path, torch.cat([x, x])), np.tile(trainer.predict(x.numpy()), (2, 1)), rtol=1e-4, atol=1e-5
    )


def test_what_trains_can_be_chosen() -> None:
    def trained(model: nn.Module) -> set[str]:
        return set(dict(model.named_parameters()))

    assert trained(load(small_mlp(), trainable=["fc2.*"])) == {"fc2.weight", "fc2.bias"}
    assert trained(load(small_mlp(), trainable=lambda name, tensor: tensor.ndim == 2)) == {"fc1.weight", "fc2.weight"}
    mask = np.full((3,), -np.inf, np.float32)
    values = {
        "w": np.ones((4, 3), np.float32),
        "mask": mask,
        "one": np.ones((1,), np.float32),
        "b": np.ones((3,), np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[0, 1]),
        helper.make_node("Gemm", ["x", "wt", "b"], ["a"]),
        helper.make_node("Mul", ["a", "one"], ["c"]),
        helper.make_node("Add", ["c", "mask"], ["y"]),
    ]
    assert trained(load(make(nodes, {"x": ["n", 4]}, ["y"], values))) == {"w", "b"}


EXPORTERS = [("mlp", "dynamo", 18), ("norm_cnn", "dynamo", 20), ("norm_cnn", "script", 13), ("lenet", "script", 17)]
SLOW = [
    (name, how, opset)
    for name in CASES
    for how, opset in (("dynamo", 18), ("dynamo", 23), ("script", 13), ("script", 17))
]
# what the older exporter cannot write: attention before opset 14, aten::diff at all
ATTENTION = ("vit", "bert", "gpt2")
SLOW = [
    c
    for c in SLOW
    if c not in EXPORTERS and not (c[0] in ATTENTION and c[1:] == ("script", 13)) and c[:2] != ("gpt2", "script")
]


@pytest.mark.parametrize(
    ("name", "how", "opset"), [*EXPORTERS, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_exported_by_torch(name: str, how: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = CASES[name].build().eval(), CASES[name].batch(4), tmp_path / "m.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamo":
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            torch.onnx.export(
                model, (x,), str(path), dynamo=True, dynamic_shapes=shapes, opset_version=opset, verbose=False
            )
        else:
            axes = {"x": {0: "n"}}
            torch.onnx.export(
                model, (x,), str(path), dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes
            )
    found = load(path)
    more = CASES[name].batch(7)
    expected = output_of(model(more)).detach()
    result = found(more)
    torch.testing.assert_close(result if isinstance(result, Tensor) else result[0], expected, rtol=1e-4, atol=1e-5)
    assert any(True for _ in found.parameters())
    report = lfpgraph.coverage(found, x)
    assert report.covered
    if name in ("mlp", "lenet", "norm_cnn", "vit", "bert"):
        before, after = train(found, more)
        assert after < before


def test_scikit_learns_mlp() -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = MLPClassifier((32,), max_iter=3, random_state=0).fit(x[:1000], y[:1000])
        proto = skl2onnx.to_onnx(fitted, x[:1], options={"zipmap": False}, target_opset=17)
    model = load(proto)
    inputs = torch.from_numpy(x[1000:])
    label, probabilities = model(inputs)
    np.testing.assert_array_equal(label, fitted.predict(x[1000:]))
    np.testing.assert_allclose(probabilities.detach().numpy(), fitted.predict_proba(x[1000:]), rtol=1e-3, atol=1e-5)
    assert sorted(tuple(p.shape) for p in model.parameters()) == [(1, 10), (1, 32), (32, 10), (64, 32)]
    before = (fitted.predict(x[1000:]) == y[1000:]).mean()
    lfpgraph.wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    labels = torch.from_numpy(y)
    for _ in range(40):
        loss = nn.functional.nll_loss(model(torch.from_numpy(x[:1000]))[1].clamp_min(1e-9).log(), labels[:1000])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(inputs)[0] == labels[1000:]).double().mean() > before + 0.05


def test_quantised_models(tmp_path: Path) -> None:
    """Weights stored as integers stay as they are, the float part trains."""
    draw = np.random.default_rng(0)
    values = {
        "q": draw.integers(-100, 100, (8, 16)).astype(np.int8), "scale": np.float32(0.01), "zero": np.int8(0),
        "b": np.zeros(16, np.float32), "w": draw.normal(size=(16, 3)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("MatMul", ["x", "dq"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    proto = make(nodes, {"x": ["n", 8]}, ["y"], values)
    model, x = load(proto), torch.randn(6, 8)
    assert set(dict(model.named_parameters())) == {"b", "w"}
    np.testing.assert_allclose(model(x).detach().numpy(), run(proto, x), rtol=1e-4, atol=1e-5)
    before, after = train(model, x)
    assert after < before


def test_export_checks_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = CASES["norm_cnn"].build(), CASES["norm_cnn"].batch(4)
    lfpgraph.wrap(model)
    path = export(model, tmp_path / "m.onnx", {"input": x})
    assert model.training and lfpgraph.is_wrapped(model)
    model.eval()
    more = CASES["norm_cnn"].batch(9)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, more), model(more).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(OnnxError, match="differs"):
        export(model, tmp_path / "bad.onnx", x, tolerance=-1.0)
    assert not (tmp_path / "bad.onnx").exists()


def test_external_data(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(3, 64)
    path = export(model, tmp_path / "m.onnx", x, external_data=True)
    assert (tmp_path / "m.onnx.data").stat().st_size >= 64 * 64 * 4
    assert path.stat().st_size < 8000
    torch.testing.assert_close(load(path)(x), model(x))
    step = export_training_step(model, x, tmp_path / "s.onnx", external_data=True)
    trainer = OrtTrainer(step)
    np.testing.assert_array_equal(trainer.parameters()["0.weight"], model[0].weight.detach().numpy())
    with pytest.raises(OnnxError, match="path of the model"):
        load(path.read_bytes())


def test_the_module_is_like_any_other(tmp_path: Path) -> None:
    import copy

    model = load(small_mlp())
    twin = copy.deepcopy(model)
    x = torch.randn(3, 8)
    torch.testing.assert_close(twin(x), model(x=x))
    assert model.example(4)[0].shape == (4, 8)
    assert "first" in model.steps
    with pytest.raises(OnnxError, match="the model takes x"):
        model(x, x)
    with pytest.raises(OnnxError, match="first"):
        model(torch.randn(3, 9))
    composite = lfpgraph.get_composite("lfp-epsilon").override("steps.first", epsilon=1.0)
    assert not torch.equal(
        lfpgraph.feedback(model, x, torch.ones(3, 3), composite)["fc1.weight"],
        lfpgraph.feedback(model, x, torch.ones(3, 3), "lfp-epsilon")["fc1.weight"],
    )


def test_a_shape_of_few_bits_keeps_the_batch_open(tmp_path: Path) -> None:
    """Paddle's exporter puts shapes together from int32 constants, and writes open sizes as -1."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Slice", ["s", "zero", "one"], ["n"]),
             helper.make_node("Cast", ["eight"], ["e"], to=onnx.TensorProto.INT64),
             helper.make_node("Concat", ["n", "e"], ["w"], axis=0),
             helper.make_node("Reshape", ["x", "w"], ["r"]), helper.make_node("MatMul", ["r", "k"], ["y"])]  # fmt: skip
    values = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "eight": np.array([8], np.int32),
        "k": np.ones((8, 3), np.float32),
    }
    model = load(make(nodes, {"x": [-1, 2, 4]}, ["y"], values))
    assert model.example()[0].shape == (2, 2, 4)
    path = lfpgraph.onnx.export_training_step(model, model.example(), tmp_path / "s.onnx")
    assert lfpgraph.onnx.OrtTrainer(path).predict(np.ones((5, 2, 4))).shape == (5, 3)
