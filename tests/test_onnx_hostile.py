"""Broken and hostile ONNX files: one clear error of our own, nothing outside the folder read, memory bounded."""

from __future__ import annotations

import builtins
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfpgraph.errors import OnnxError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from lfpgraph.onnx import OrtTrainer, export_training_step, load  # noqa: E402

from .support.onnx_files import make, small_mlp  # noqa: E402


def changed(change: Any) -> Any:
    proto = small_mlp()
    change(proto)
    return proto


def cyclic(proto: Any) -> None:
    proto.graph.node[1].input[0] = "c"


def twice(proto: Any) -> None:
    proto.graph.node[1].output[0] = "a"


def unknown(proto: Any) -> None:
    proto.graph.node[0].op_type = "Frobnicate"
    proto.graph.node[1].domain = "com.example"


def opset(number: int) -> Any:
    def change(proto: Any) -> None:
        proto.opset_import[0].version = number

    return change


def huge(proto: Any) -> None:
    proto.graph.initializer[0].dims[:] = [2**40, 2**20]


def negative(proto: Any) -> None:
    proto.graph.initializer[0].dims[:] = [-4, -32]


def short(proto: Any) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def control_flow(proto: Any) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [proto.graph.output[0]])
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["w"], then_branch=branch))


def no_output(proto: Any) -> None:
    del proto.graph.output[:]


def strings(proto: Any) -> None:
    proto.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"a"]))


BROKEN = [
    (cyclic, "cycle"), (twice, "two nodes"), (unknown, r"Frobnicate \(first\), com.example.Relu"), (opset(999), "opset"),
    (opset(1), "opset"), (huge, "belong"), (negative, "negative"), (short, "belong"), (control_flow, "graphs of its own"),
    (no_output, "no output"), (strings, "STRING"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "word"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_broken_models_are_refused(change: Any, word: str) -> None:
    with pytest.raises(OnnxError, match=word):
        load(changed(change))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    data = small_mlp().SerializeToString()
    for content in (b"", b"not onnx at all", data[: len(data) // 2], data[:-1], b"\x00" * 1000, data[10:]):
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(OnnxError):
            load(path)
        with pytest.raises(OnnxError):
            OrtTrainer(path)
    for source in (tmp_path, tmp_path / "absent.onnx", 3, None):
        with pytest.raises(OnnxError):
            load(source)


def external(location: str, **entries: str) -> Any:
    proto = small_mlp()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def test_external_data_stay_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * 16 * 8))
    (folder / "link.bin").symlink_to(secret)
    (folder / "sub").mkdir()
    (folder / "good.bin").write_bytes(bytes(4 * 16 * 8))
    opened: list[str] = []
    for owner, name in ((builtins, "open"), (np, "fromfile")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda file, *a, real=real, **k: (opened.append(str(file)), real(file, *a, **k))[1]
        )
    for location in (
        "../secret.bin",
        str(secret),
        "sub/../../secret.bin",
        "link.bin",
        "sub",
        "",
        "absent",
        "a\0b",
        "/dev/zero",
    ):
        path = folder / "m.onnx"
        path.write_bytes(external(location).SerializeToString())
        with pytest.raises(OnnxError, match="folder"):
            load(path)
    for entries in ({"offset": "8"}, {"offset": "-1"}, {"offset": "x"}, {"length": str(2**60)}, {"length": "4"}):
        path.write_bytes(external("good.bin", **entries).SerializeToString())
        with pytest.raises(OnnxError):
            load(path)
    assert not [name for name in opened if name.endswith(("secret.bin", "link.bin", "zero"))]
    path.write_bytes(external("good.bin").SerializeToString())
    assert not load(path).state_dict()["fc1.weight"].any()
    assert [name for name in opened if name.endswith("good.bin")]


def test_external_data_are_of_the_model_alone(tmp_path: Path) -> None:
    """No file that stands elsewhere too, not the model itself, no hole, and no bytes again and again."""
    path, secret, folder = tmp_path / "m.onnx", tmp_path / "elsewhere" / "secret.bin", tmp_path
    secret.parent.mkdir()
    secret.write_bytes(bytes(4 * 16 * 8))
    (folder / "hard.bin").hardlink_to(secret)
    with (folder / "hole.bin").open("wb") as hole:
        hole.truncate(2**40)
    for location in ("hard.bin", "m.onnx"):
        path.write_bytes(external(location).SerializeToString())
        with pytest.raises(OnnxError, match="stands elsewhere"):
            load(path)
    proto = external("hole.bin")
    proto.graph.initializer[0].dims[:] = [2**17, 2**17]
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxError, match="hole"):
        load(path)
    (folder / "some.bin").write_bytes(np.ones(2**20, np.float32).tobytes())
    proto = external("some.bin")
    proto.graph.initializer[0].dims[:] = [2**20]
    for number in range(40):
        again = proto.graph.initializer.add()
        again.CopyFrom(proto.graph.initializer[0])
        again.name = f"again{number}"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxError, match="share the same bytes"):
        load(path)


def functions(depth: int, calls: int) -> Any:
    """A file of `depth` functions, each of which calls the one before `calls` times; the first calls the relu."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    made = []
    for number in range(depth):
        names = ["x", *(f"t{i}" for i in range(calls - 1)), "y"]
        kind, domain = (f"F{number - 1}", "d") if number else ("Relu", "")
        nodes = [helper.make_node(kind, [a], [b], domain=domain) for a, b in zip(names, names[1:])]
        made.append(helper.make_function("d", f"F{number}", ["x"], ["y"], nodes, opsets))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xz"]
    graph = helper.make_graph([helper.make_node(f"F{depth - 1}", ["x"], ["z"], domain="d")], "g", info[:1], info[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=made, ir_version=9)


def test_functions_that_grow_without_bounds() -> None:
    x = torch.randn(2, 2)
    assert torch.equal(load(functions(3, 2))(x), x.relu())
    with pytest.raises(OnnxError, match=r"stand for 1e\+09 nodes"):
        load(functions(9, 10))
    endless = functions(2, 2)
    endless.functions[0].node[0].op_type, endless.functions[0].node[0].domain = "F1", "d"
    with pytest.raises(OnnxError, match="calls itself"):
        load(endless)


def test_names_of_any_depth() -> None:
    proto = small_mlp()
    before, name = proto.graph.initializer[0].name, ".".join(["a"] * 5000)
    proto.graph.initializer[0].name = name
    for node in proto.graph.node:
        node.input[:] = [name if one == before else one for one in node.input]
    model = load(proto)
    assert len(list(model.named_parameters())) == len(list(load(small_mlp()).named_parameters()))
    model.load_state_dict(model.state_dict())


def test_a_companion_stays_in_the_folder(tmp_path: Path) -> None:
    path = export_training_step(torch.nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "s.onnx")
    proto = onnx.load(str(path))
    entry = next(p for p in proto.metadata_props if p.key == "lfpgraph.training_step")
    for wrong in ("../s.forward.onnx", "/etc/passwd"):
        entry.value = entry.value.replace("s.forward.onnx", wrong)
        onnx.save(proto, str(path))
        with pytest.raises(OnnxError, match="outside its folder"):
            OrtTrainer(path).predict(np.zeros((2, 3)))
        entry.value = entry.value.replace(wrong, "s.forward.onnx")
    described = json.loads(entry.value)
    changes = {
        "format": 9,
        "target": 3,
        "outputs": [1],
        "metrics": ["x"],
        "aliases": [],
        "inputs": [[]],
        "state": ["x"],
    }
    changes |= {"example": {"input": [2**50]}, "reward": None, "optimizer": {}}
    wrong = [json.dumps({**described, key: value}) for key, value in changes.items()]
    for text in ("[]", "{", '{"format": 1}', "[" * 9999, *wrong):
        entry.value = text
        onnx.save(proto, str(path))
        with pytest.raises(OnnxError, match="training step|another version"):
            OrtTrainer(path)


ABSURD = {
    "ConstantOfShape": ([2**20, 2**20], [], {}),
    "Expand": ([2**20, 2**20], ["x"], {}),
    "Tile": ([2**20, 2**20], ["x"], {}),
    "Pad": ([2**40, 0, 0, 0], ["x"], {}),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_shapes_take_no_memory(kind: str) -> None:
    shape, before, attributes = ABSURD[kind]
    node = helper.make_node(kind, [*before, "shape"], ["y"], **attributes)
    proto = make([node], {"x": [2, 2]}, ["y"], {"shape": np.array(shape, np.int64)})
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OnnxError, match="elements"):
        load(proto)(torch.ones(2, 2))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200_000  # kB
    outer = make([helper.make_node("MatMul", ["column", "row"], ["y"])], {"x": [2, 2]}, ["y"], {
        "column": np.ones((2**20, 1), np.float32), "row": np.ones((1, 2**20), np.float32)})  # fmt: skip
    with pytest.raises(OnnxError, match="elements"):
        load(outer)(torch.ones(2, 2))
    wide = make([helper.make_node("Relu", ["x"], ["y"])], {"x": [2**30, 2**30]}, ["y"], {})
    with pytest.raises(OnnxError, match="absurd"):
        load(wide).example()
    with pytest.raises(OnnxError, match="absurd"):
        load(make([helper.make_node("Relu", ["x"], ["y"])], {"x": [1] * 1000}, ["y"], {})).example()


def test_numbers_of_parts_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that share no keys, a scan over inputs that are not there, a sequence of a million parts, a loop without end."""
    body = helper.make_graph([helper.make_node("Identity", ["r"], ["s"])], "b", [helper.make_tensor_value_info("r", 1, None)],
                             [helper.make_tensor_value_info("s", 1, None)])  # fmt: skip
    monkeypatch.setattr("lfpgraph.onnx.imports.sequences._MOST_ROUNDS", 50)
    value, yes = helper.make_tensor_value_info, helper.make_node("Identity", ["c"], ["d"])
    nodes, ins = (
        [yes, helper.make_node("Relu", ["r"], ["s"])],
        [value("i", 7, []), value("c", 9, []), value("r", 1, None)],
    )
    endless = helper.make_graph(nodes, "b", ins, [value("d", 9, []), value("s", 1, None)])
    parts = [
        helper.make_node("SplitToSequence", ["x"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
    ]
    for nodes, shape, message in (
        ([helper.make_node("Attention", ["x"] * 3, ["y"], q_num_heads=2, kv_num_heads=4)], [2, 3, 8], "Attention"),
        ([helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=9)], [2, 3], "9 of its 1 inputs"),
        (parts, [10**6, 1], "parts"),
        ([helper.make_node("Split", ["x"], ["y"], num_outputs=10**6)], [10**6, 1], "Split .* asks for"),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=99)], [2, 3], "Softmax"),
        ([helper.make_node("Loop", ["", "", "x"], ["y"], body=endless)], [2, 3], "asks for endless rounds"),
    ):
        with pytest.raises(OnnxError, match=message):
            load(make(nodes, {"x": shape}, ["y"], {}, 18))(torch.zeros(shape))
