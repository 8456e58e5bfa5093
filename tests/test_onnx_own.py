"""A loaded file goes out as itself with other weights: its own operators, names and open sizes, control flow on data too."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lfpgraph

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lfpgraph.onnx import export, load  # noqa: E402

from .support.onnx_files import make  # noqa: E402

DRAW = np.random.default_rng(0)
node = helper.make_node


def floats(*size: int) -> Any:
    return DRAW.normal(size=size).astype(np.float32)


def branch(name: str, weight: Any) -> Any:
    """A product with a weight that a Constant node inside the branch holds."""
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "w")),
        node("MatMul", ["h", "w"], ["out"]),
    ]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])])


def branching() -> Any:
    """An initializer, a Constant node, and a branch that the data takes, with a Constant node in each."""
    nodes = [
        node("MatMul", ["x", "first"], ["m"]),
        node("Constant", [], ["b"], value=numpy_helper.from_array(floats(5), "b")),
        node("Add", ["m", "b"], ["a"]),
        node("Relu", ["a"], ["h"]),
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["up"]),
        node("If", ["up"], ["y"], then_branch=branch("then", floats(5, 3)), else_branch=branch("else", floats(5, 3))),
    ]
    return make(nodes, {"x": ["n", 4]}, ["y"], {"first": floats(4, 5), "zero": np.float32(0)}, 17)


def run(path: Path, x: Tensor) -> Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def moved(model: nn.Module, x: Tensor) -> nn.Module:
    """After a step of feedback, which must have moved something."""
    before = [p.detach().clone() for p in model.parameters()]
    lfpgraph.wrap(model, engine="live")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))
    return model


@pytest.mark.parametrize("kind", ["path", "bytes", "proto", "copy", "pickle"])
def test_branches_on_data_go_out_with_new_weights(kind: str, tmp_path: Path) -> None:
    proto, source = branching(), tmp_path / "source.onnx"
    onnx.save(proto, source)
    whole = source.read_bytes()
    model: Any = load({"bytes": whole, "proto": proto}.get(kind, source))
    model = copy.deepcopy(model) if kind == "copy" else pickle.loads(pickle.dumps(model)) if kind == "pickle" else model
    x = torch.from_numpy(floats(2, 4))
    path = export(moved(model, x), tmp_path / "out.onnx", x)
    assert source.read_bytes() == whole == proto.SerializeToString()
    assert [n.op_type for n in onnx.load(path).graph.node] == [n.op_type for n in proto.graph.node]
    for other in (x, -x, torch.from_numpy(floats(7, 4))):  # either branch, and the batch is as open as it was
        torch.testing.assert_close(run(path, other), model(other).detach())
        assert not torch.allclose(run(path, other), run(source, other))
    for name, value in load(path).named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_weights_beside_the_file_in_any_type(dtype: str, tmp_path: Path) -> None:
    number = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}[dtype]
    proto = make([node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 40]}, ["y"], {"w": floats(40, 30).astype(dtype)}, 17)
    for end in (*proto.graph.input, *proto.graph.output):
        end.type.tensor_type.elem_type = number
    onnx.save_model(proto, tmp_path / "source.onnx", save_as_external_data=True, location="values", size_threshold=0)
    model = load(tmp_path / "source.onnx")
    x = torch.from_numpy(floats(3, 40).astype(dtype))
    with torch.no_grad():
        model.get_parameter("w").mul_(0.5)
    (tmp_path / "elsewhere").mkdir()
    for beside in (None, True):
        path = export(model, tmp_path / "elsewhere" / "out.onnx", x, external_data=beside)
        assert path.with_name("out.onnx.data").exists() is bool(beside)
        assert torch.equal(load(path).get_parameter("w"), model.get_parameter("w"))
        torch.testing.assert_close(run(path, x), model(x).detach(), rtol=1e-2, atol=1e-2)


def test_a_model_that_was_changed_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"], name="product"), node("Relu", ["m"], ["y"], name="end")]
    model: Any = load(make(nodes, {"x": ["n", 4]}, ["y"], {"w": floats(4, 5)}, 17))
    model.steps["end"] = nn.Tanh()
    x = torch.from_numpy(floats(3, 4))
    with caplog.at_level(logging.WARNING, "lfpgraph"):
        path = export(model, tmp_path / "out.onnx", x)
    assert "written anew" in caplog.text
    torch.testing.assert_close(run(path, x), model(x).detach())
    assert "Tanh" in {n.op_type for n in onnx.load(path).graph.node}


def test_scales_that_the_file_holds_are_known_while_tracing() -> None:
    values = {"w": floats(2, 1, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Resize", ["c", "", "scales"], ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]
    model = load(make(nodes, {"x": ["n", 1, "h", "w_"]}, ["y"], values, 13)).eval()
    assert dict(model.named_parameters()).keys() == {"w"}
    found = lfpgraph.conservation(model, torch.from_numpy(floats(2, 1, 6, 6)), lambda y: y.sum().reshape(1))
    assert found.inputs + sum(found.leaks.values()) == pytest.approx(found.explained, rel=1e-4)


def test_pads_that_a_file_works_out_as_a_table_are_known_while_tracing() -> None:
    """torch's older exporter pads so: zeros to the widths, a table of two columns, turned over, transposed, flat again."""
    values = {
        "w": floats(3, 2),
        "widths": np.array([1, 2]),
        "more": np.array([4]),
        "table": np.array([-1, 2]),
        "end": np.array([-1]),
        "least": np.array([-(2**63) + 1]),
        "first": np.array([0]),
        "flat": np.array([-1]),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("ConstantOfShape", ["more"], ["zeros"], value=numpy_helper.from_array(np.array([0]), "zero")),
        node("Concat", ["widths", "zeros"], ["six"], axis=0),
        node("Reshape", ["six", "table"], ["pairs"]),
        node("Slice", ["pairs", "end", "least", "first", "end"], ["turned"]),
        node("Transpose", ["turned"], ["sides"], perm=[1, 0]),
        node("Reshape", ["sides", "flat"], ["pads"]),
        node("Pad", ["m", "pads"], ["y"], mode="constant"),
    ]
    proto = make(nodes, {"x": ["n", 5, 3]}, ["y"], values, 17)
    model, x = load(proto), torch.from_numpy(floats(2, 5, 3))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    torch.testing.assert_close(model(x).detach(), torch.from_numpy(session.run(None, {"x": x.numpy()})[0]))
    found = lfpgraph.conservation(model, x, lambda y: y.sum().reshape(1))
    assert found.inputs == pytest.approx(found.explained, rel=1e-4)
