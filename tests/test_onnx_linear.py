"""Linear operators of ai.onnx.ml, as scikit-learn's exporter writes them, and rows of quantised tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lfpgraph
from lfpgraph.errors import OnnxError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from lfpgraph.onnx import export, load  # noqa: E402

from .support.onnx_files import make  # noqa: E402

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
WEIGHTS, SHIFTS = [0.5, -1.0, 2.0, 1.5, 0.25, -0.75], [0.1, -0.2]
SVM = {
    "coefficients": [1.0, -2.0],
    "support_vectors": WEIGHTS,
    "rho": [0.3],
    "n_supports": 2,
    "kernel_params": [0.3, 0.5, 2.0],
}


def linear(kind: str, outputs: int = 1, **attributes: Any) -> Any:
    """A file of one operator; its operator sets are named twice, as skl2onnx does it."""
    made = helper.make_node(kind, ["x"], ["label", "y"][-outputs:], kind.lower(), domain="ai.onnx.ml", **attributes)
    proto = make([made], {"x": ["n", 3]}, ["y"], {})
    proto.opset_import.extend([helper.make_opsetid("", 17), *[helper.make_opsetid("ai.onnx.ml", 1)] * 2])
    return proto


def expected(proto: Any, x: Any = X) -> Any:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize(
    "proto",
    [
        linear("Scaler", offset=[1.0, 2.0, 3.0], scale=[0.5, 2.0, 1.0]),
        linear("Normalizer", norm="L1"),
        linear("Normalizer", norm="L2"),
        linear("LinearRegressor", coefficients=WEIGHTS, intercepts=SHIFTS, targets=2),
        linear("LinearRegressor", coefficients=WEIGHTS[:3]),
        *(
            linear("LinearClassifier", 2, coefficients=WEIGHTS, intercepts=SHIFTS, classlabels_ints=[4, 7], post_transform=how)
            for how in ("NONE", "LOGISTIC", "SOFTMAX")
        ),
        *(linear("SVMRegressor", kernel_type=kernel, **SVM) for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID")),
        linear("SVMRegressor", coefficients=WEIGHTS[:3], rho=[0.3], kernel_params=[0.3, 0.5, 2.0]),
    ],
    ids=lambda proto: proto.graph.node[0].op_type,
)  # fmt: skip
def test_linear_operators_run_and_train(proto: Any, tmp_path: Path) -> None:
    (wanted,) = expected(proto)
    model, x = load(proto), torch.from_numpy(X)
    np.testing.assert_allclose(model(x).detach(), wanted, rtol=1e-5, atol=1e-6)
    weights = dict(model.named_parameters())
    assert set(weights) == {f"{proto.graph.node[0].name}.{a.name}" for a in proto.graph.node[0].attribute
                            if a.name in ("offset", "scale", "coefficients", "intercepts", "support_vectors", "rho")}  # fmt: skip
    if not weights:
        return
    lfpgraph.wrap(model)
    update, losses = torch.optim.SGD(model.parameters(), 1e-3), []
    for _ in range(5):
        loss = (model(x) - 3).square().mean()
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = onnx.load(str(export(lfpgraph.unwrap(model), tmp_path / "again.onnx", x)))
    assert again.graph.node[0].domain == "ai.onnx.ml"  # its own file, with the weights of now
    np.testing.assert_allclose(expected(again)[0], model(x).detach(), rtol=1e-5, atol=1e-6)


def test_labels_and_maps_are_tensors(tmp_path: Path) -> None:
    """ZipMap makes a map from labels to probabilities for each row; the probabilities are what counts."""
    proto = linear("LinearClassifier", 2, coefficients=WEIGHTS, intercepts=SHIFTS, classlabels_ints=[4, 7])
    proto.graph.node.append(helper.make_node("ZipMap", ["y"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[4, 7]))
    key = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    proto.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(key)))
    label, maps = expected(proto)
    model = load(proto)
    found = model(torch.from_numpy(X))
    np.testing.assert_array_equal(found[0], label)
    np.testing.assert_allclose(found[1].detach(), [[row[4], row[7]] for row in maps], rtol=1e-5)
    plain = onnx.load(str(export(model, tmp_path / "plain.onnx", torch.from_numpy(X))))
    np.testing.assert_allclose(expected(plain)[1], found[1].detach(), rtol=1e-5)


def test_what_is_not_linear_is_refused() -> None:
    for proto, said in (
        (linear("Normalizer", norm="MAX"), "largest"),
        (linear("LinearRegressor", coefficients=WEIGHTS[:3], post_transform="PROBIT"), "PROBIT"),
        (linear("LinearClassifier", 2, coefficients=WEIGHTS, classlabels_strings=["a", "b"]), "text"),
    ):
        with pytest.raises(OnnxError, match=said):
            load(proto)(torch.from_numpy(X))


def test_rows_of_a_quantised_table_are_an_embedding() -> None:
    """As onnxruntime's quantiser writes them: looked up, moved, then scaled."""
    draw = np.random.default_rng(1)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], name="lookup"),
        helper.make_node("Transpose", ["rows"], ["turned"], name="turn", perm=[1, 0, 2]),
        helper.make_node("DequantizeLinear", ["turned", "scale", "zero"], ["numbers"], name="scaled"),
        helper.make_node("MatMul", ["numbers", "w"], ["y"], name="last"),
    ]
    values = {"table": draw.integers(0, 255, (9, 4)).astype(np.uint8), "scale": np.float32(0.1), "zero": np.uint8(120),
              "w": draw.normal(size=(4, 2)).astype(np.float32)}  # fmt: skip
    proto = make(nodes, {"x": ["n", "l"]}, ["y"], values)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    ids = torch.tensor([[1, 4, 8], [0, 0, 3]])
    model = load(proto, dequantise=True)
    np.testing.assert_allclose(model(ids).detach(), expected(proto, ids.numpy())[0], rtol=1e-5, atol=1e-5)
    assert dict(model.named_parameters()).keys() == {"table.value", "w"}
    for way in (load(proto), model):
        relevance = lfpgraph.attribute(way, ids, lambda out: out[..., 1].sum(), "lrp-0")
        torch.testing.assert_close(relevance, way(ids)[..., 1].t().detach())
