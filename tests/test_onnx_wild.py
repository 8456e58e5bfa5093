"""What real ONNX files do: weights in Constant nodes and branches, control flow, recurrence, fused and quantised operators.

Every file is made here; onnxruntime says what is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lfpgraph
from lfpgraph.errors import OnnxError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lfpgraph.onnx import load  # noqa: E402
from lfpgraph.onnx.imports import importer  # noqa: E402

from .support.onnx_files import make  # noqa: E402

DRAW = np.random.default_rng(0)
node = helper.make_node


def floats(*size: int, by: float = 1.0) -> Any:
    return (DRAW.normal(size=size) * by).astype(np.float32)


def whole(low: int, high: int, *size: int, dtype: Any = np.int8) -> Any:
    return DRAW.integers(low, high, size).astype(dtype)


def constant(name: str, value: Any) -> Any:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))


def file(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], values: dict[str, Any], opset: int = 17) -> Any:
    """A file with ORT's own operators too, whose inputs have the shapes of these arrays."""
    proto = make(nodes, {name: list(np.shape(x)) for name, x in inputs.items()}, outputs, values, opset)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def check(proto: Any, inputs: dict[str, Any], tolerance: float = 1e-5) -> Any:
    """Load; the outputs must be those of onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted, model = session.run(None, inputs), load(proto)
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(np.array(x)) for name, x in inputs.items()})
    for value, expected in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        np.testing.assert_allclose(value.numpy(), expected, rtol=tolerance, atol=tolerance)
        assert value.numpy().dtype == expected.dtype
    return model


def reached(model: Any, **inputs: Any) -> set[str]:
    """Names of the parameters that feedback reaches."""
    lfpgraph.wrap(model)
    found = model(**{name: torch.from_numpy(np.array(x)) for name, x in inputs.items()})
    (found[0] if isinstance(found, tuple) else found).square().sum().backward()
    lfpgraph.unwrap(model)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def branch(name: str, nodes: list[Any], out: str) -> Any:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])


def test_weights_in_constants_and_behind_identities_stay_tied() -> None:
    nodes = [constant("w", floats(4, 4)), node("Identity", ["w"], ["w1"]), node("Identity", ["w1"], ["w2"]),
             constant("first", floats(2, 4)), constant("rest", floats(2, 4)), constant("eps", np.float32(1e-3)),
             node("Concat", ["first", "rest"], ["v"], axis=0), node("MatMul", ["x", "w1"], ["a"]),
             node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w2"], ["c"]), node("MatMul", ["c", "v"], ["d"]),
             node("Add", ["d", "eps"], ["y"])]  # fmt: skip
    x = {"x": floats(3, 4)}
    model = check(file(nodes, x, ["y"], {}), x)
    assert reached(model, **x) == set(dict(model.named_parameters())) == {"w", "first", "rest"}


@pytest.mark.parametrize("live", [False, True])
def test_branches(live: bool) -> None:
    """By a size, decided while tracing, or by data; each branch has weights of its own, two under one name."""
    inner = branch("i", [constant("v", floats(4, 2)), node("MatMul", ["h", "v"], ["z"])], "z")
    other = branch("j", [node("Identity", ["h"], ["z"])], "z")
    yes = branch("yes", [constant("w", floats(4, 4)), node("MatMul", ["x", "w"], ["h"]),
                         node("If", ["c"], ["q"], then_branch=inner, else_branch=other)], "q")  # fmt: skip
    no = branch("no", [constant("w", floats(4, 3)), node("MatMul", ["x", "w"], ["z"])], "z")
    decide = (
        [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"])]
        if live
        else [node("Shape", ["x"], ["n"]), constant("one", np.array(1)), node("Gather", ["n", "one"], ["m"]),
              constant("four", np.array(4)), node("Equal", ["m", "four"], ["c"])]
    )  # fmt: skip
    nodes = [*decide, node("If", ["c"], ["y"], then_branch=yes, else_branch=no)]
    x = {"x": np.abs(floats(3, 4))}
    proto = file(nodes, x, ["y"], {"zero": np.float32(0)} if live else {})
    model = check(proto, x)
    assert len(list(model.parameters())) == 3
    taken = reached(model, **x)
    assert len(taken) == 2
    if live:
        less = {"x": -x["x"]}
        check(proto, less)
        assert reached(load(proto), **less) == set(dict(model.named_parameters())) - taken
    else:
        assert lfpgraph.trace(model, (torch.from_numpy(x["x"]),)).dynamic


def test_a_branch_that_hands_on_a_value_from_around_it() -> None:
    x = {"x": floats(3, 4)}
    bare, deep = (
        branch("a", [node("Identity", ["h"], ["z"])], "z"),
        branch("b", [node("Identity", ["h"], ["z2"])], "z2"),
    )
    around = branch("c", [node("If", ["c"], ["q"], then_branch=deep, else_branch=deep)], "q")
    nodes = [node("Relu", ["x"], ["h"]), node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"]),
             node("If", ["c"], ["y"], then_branch=bare, else_branch=around)]  # fmt: skip
    for sign in (1, -1):
        check(file(nodes, x, ["y"], {"zero": np.float32(0)}), {"x": sign * np.abs(x["x"])})


def looping(rounds: int, going: str = "Identity") -> Any:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("MatMul", ["h", "w"], ["p"]), node("Tanh", ["p"], ["out"]), node(going, ["go"], ["on"]),
         node("ReduceSum", ["out"], ["seen"], keepdims=0)], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("h", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("out", TensorProto.FLOAT, None), info("seen", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return [node("Loop", ["n", "", "x"], ["y", "sums"], body=body)], {"w": floats(4, 4), "n": np.array(rounds)}


def test_loops_scans_and_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    x = {"x": floats(3, 4)}
    nodes, values = looping(5)
    model = check(file(nodes, x, ["y", "sums"], values), x)
    assert reached(model, **x) == {"w"}
    once, given = looping(5, "Not")  # which ends after a round
    check(file(once, x, ["y", "sums"], given), x)
    monkeypatch.setattr(importer, "_MOST_ROUNDS", 20)
    with pytest.raises(OnnxError, match="more than 20 rounds"):
        load(file(*(nodes, x, ["y"], {**values, "n": np.array(40)})))(torch.from_numpy(x["x"]))
    info = helper.make_tensor_value_info
    body = helper.make_graph([node("Add", ["s", "row"], ["t"]), node("Mul", ["t", "v"], ["u"])], "body",
                             [info(n, TensorProto.FLOAT, None) for n in ("s", "row")],
                             [info(n, TensorProto.FLOAT, None) for n in ("t", "u")])  # fmt: skip
    steps = [node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_directions=[1])]
    check(file(steps, x, ["y", "last"], {"start": floats(4), "v": floats(4)}), x)
    parts = [node("SplitToSequence", ["x"], ["s"], axis=0), node("SequenceAt", ["s", "one"], ["a"]),
             node("SequenceInsert", ["s", "a"], ["t"]), node("ConcatFromSequence", ["t"], ["y"], axis=0)]  # fmt: skip
    check(file(parts, x, ["y"], {"one": np.array(1)}), x)


def test_a_branch_cannot_ask_for_absurd_sizes() -> None:
    big = branch("b", [node("MatMul", ["column", "row"], ["z"])], "z")
    nodes = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"]),
             node("If", ["c"], ["y"], then_branch=big, else_branch=big)]  # fmt: skip
    values = {"column": floats(2**17, 1), "row": floats(1, 2**17), "zero": np.float32(0)}
    with pytest.raises(OnnxError, match=r"MatMul.*elements"):
        load(file(nodes, {"x": floats(2, 2)}, ["y"], values))(torch.ones(2, 2))


RECURRENT = {
    "LSTM": {"input_forget": 1, "clip": 0.5, "activations": ["HardSigmoid", "Tanh", "Relu"] * 2, "activation_alpha": [0.3, 0.1],
             "activation_beta": [0.4, 0.6]},
    "GRU": {"linear_before_reset": 1, "clip": 0.5, "activations": ["Sigmoid", "Softsign"] * 2},
    "RNN": {"activations": ["Relu", "Tanh"], "clip": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("options", [False, True])
def test_recurrence_with_all_its_options(kind: str, options: bool) -> None:
    gates, n, h = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 3, 5
    values = {"w": floats(2, gates * h, n), "r": floats(2, gates * h, h), "b": floats(2, 2 * gates * h),
              "lengths": np.array([4, 2], np.int32), "h": floats(2, 2, h), "c": floats(2, 2, h),
              "p": floats(2, 3 * h)}  # fmt: skip
    reads = ["x", "w", "r", "b", "lengths", "h", *(["c", "p"] if kind == "LSTM" else [])]
    makes = ["y", "hn", *(["cn"] if kind == "LSTM" else [])]
    given = RECURRENT[kind] if options else {}
    x = {"x": floats(4, 2, n)}
    proto = file([node(kind, reads, makes, hidden_size=h, direction="bidirectional", **given)], x, makes, values)
    assert {"w", "r", "b"} <= reached(check(proto, x), **x)


@pytest.mark.skipif(
    ort.__version__.startswith("1.23."), reason="has no ConvInteger for signed weights, as of Python 3.10"
)
def test_quantised_files_run_exactly_and_pass_feedback_on() -> None:
    x = {"x": floats(2, 3, 6, 6)}
    values = {
        "k": floats(3, 3, 1, 1), "q": whole(-128, 128, 4, 3, 3, 3), "qz": np.int8(3), "ws": np.float32(0.02),
        "f": floats(4, 1, 1), "flat": np.array([2, -1]), "m": whole(0, 256, 64, 5, dtype=np.uint8),
        "mz": np.uint8(120), "ms": np.float32(0.01),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "k"], ["x0"]), node("DynamicQuantizeLinear", ["x0"], ["a", "as", "az"]),
        node("ConvInteger", ["a", "q", "az", "qz"], ["b"]), node("Cast", ["b"], ["c"], to=1),
        node("Mul", ["as", "ws"], ["s"]), node("Mul", ["c", "s"], ["d"]), node("Add", ["d", "f"], ["e"]),
        node("Reshape", ["e", "flat"], ["g"]), node("DynamicQuantizeLinear", ["g"], ["h", "hs", "hz"]),
        node("MatMulInteger", ["h", "m", "hz", "mz"], ["i"]), node("Cast", ["i"], ["j"], to=1),
        node("Mul", ["hs", "ms"], ["t"]), node("Mul", ["j", "t"], ["y"]),
    ]  # fmt: skip
    model = check(file(nodes, x, ["y"], values), x, 1e-4)
    assert reached(model, **x) == {"k", "f"}
    z = {"zero": np.uint8(128), "scale": np.float32(0.05), "ys": np.float32(1.0), "w": whole(0, 256, 4, 3, 3, 3, dtype=np.uint8),
         "m": whole(0, 256, 4, 5, dtype=np.uint8), "bias": whole(-9, 9, 4, dtype=np.int32)}  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["a"]),
        node("QLinearConv", ["a", "scale", "zero", "w", "scale", "zero", "ys", "zero", "bias"], ["b"]),
        node("QLinearSigmoid", ["b", "ys", "zero", "scale", "zero"], ["g"], domain="com.microsoft"),
        node("DequantizeLinear", ["g", "scale", "zero"], ["c"]), node("ReduceMean", ["c"], ["d"], axes=[2, 3], keepdims=0),
        node("QuantizeLinear", ["d", "scale", "zero"], ["e"]),
        node("QLinearMatMul", ["e", "scale", "zero", "m", "scale", "zero", "ys", "zero"], ["f"]),
        node("DequantizeLinear", ["f", "ys", "zero"], ["y"]),
    ]  # fmt: skip
    check(file(nodes, x, ["y"], z), x)


def test_a_quantised_output_has_the_type_of_the_file() -> None:
    x = {"x": floats(3, 4)}
    proto = file([node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])], x, ["y", "s", "z"], {})
    for out in (proto.graph.output[0], proto.graph.output[2]):
        out.type.tensor_type.elem_type = TensorProto.UINT8
    check(proto, x)


def fused() -> dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], list[str]]]:
    """For each of onnxruntime's operators its inputs after x [2, 3, 8], attributes, and outputs."""
    mask = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
    qkv, ones = [floats(8, 24, by=0.3), floats(24)], floats(8)
    number, zero = np.float32(0.02), np.uint8(130)
    lstm = [whole(-99, 99, 1, 8, 20), whole(-99, 99, 1, 5, 20), floats(1, 40), *[None] * 4,
            *[np.float32([v]) if isinstance(v, float) else np.zeros(1, np.int8) for v in (0.01, 0, 0.01, 0)]]  # fmt: skip
    return {
        "BiasGelu": ([ones], {}, ["y"]), "FastGelu": ([ones], {}, ["y"]), "Gelu": ([], {}, ["y"]),
        "QuickGelu": ([], {"alpha": 1.5}, ["y"]), "FusedMatMul": ([floats(2, 4, 8)], {"transB": 1, "alpha": 0.5}, ["y"]),
        "SkipLayerNormalization": ([floats(2, 3, 8), ones, ones, ones], {"epsilon": 1e-3}, ["y", "", "", "sum"]),
        "SkipSimplifiedLayerNormalization": ([floats(2, 3, 8), ones], {"epsilon": 1e-3}, ["y"]),
        "Attention": ([*qkv, mask], {"num_heads": 2}, ["y"]),
        "Attention:causal": (qkv, {"num_heads": 2, "unidirectional": 1}, ["y"]),
        "MultiHeadAttention": ([floats(2, 4, 8), floats(2, 4, 8), floats(24)], {"num_heads": 2}, ["y"]),
        "DynamicQuantizeMatMul": ([whole(-99, 99, 8, 4), number, np.int8(2), floats(4)], {}, ["y"]),
        "MatMulNBits": ([whole(0, 256, 6, 1, 8, dtype=np.uint8), floats(6)],
                        {"bits": 4, "block_size": 16, "K": 8, "N": 6}, ["y"]),
        "DynamicQuantizeLSTM": (lstm, {"hidden_size": 5}, ["y", "h", "c"]),
        "QAttention": ([whole(0, 256, 8, 24, dtype=np.uint8), qkv[1], number, number, None, zero, zero], {"num_heads": 2}, ["y"]),
    }  # fmt: skip


@pytest.mark.parametrize("kind", fused())
def test_fused_operators_of_onnxruntime(kind: str) -> None:
    given, attributes, makes = fused()[kind]
    values = {f"v{i}": v for i, v in enumerate(given) if v is not None}
    reads = ["x", *(f"v{i}" if v is not None else "" for i, v in enumerate(given))]
    x, nodes = {"x": floats(2, 3, 8)}, []
    if kind == "QAttention":
        nodes, reads[0] = [node("QuantizeLinear", ["x", "v2", "v5"], ["q"])], "q"
    nodes.append(node(kind.split(":")[0], reads, makes, domain="com.microsoft", **attributes))
    tolerance = (
        5e-3 if kind == "DynamicQuantizeLSTM" else 1e-3
    )  # its state is quantised a little otherwise, not known how
    check(file(nodes, x, [name for name in makes if name], values), x, tolerance)


def test_operators_that_onnx_writes_out_in_others() -> None:
    x = {"x": floats(3, 5)}
    proto = file([node("CenterCropPad", ["x", "n"], ["y"], axes=[1])], x, ["y"], {"n": np.array([3])}, 18)
    check(proto, x)


def test_what_cannot_load_names_operator_and_node() -> None:
    inner = branch("b", [node("Frobnicate", ["x"], ["z"], name="deep")], "z")
    nodes = [node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
    with pytest.raises(OnnxError, match=r"Frobnicate \(deep\)"):
        load(file(nodes, {"x": floats(2, 2)}, ["y"], {"yes": np.array(True)}))


def test_nodes_out_of_order_are_sorted_as_onnxruntime_does() -> None:
    x = {"x": floats(3, 4)}
    inner = branch("yes", [node("Mul", ["z", "z"], ["q"])], "q")
    nodes = [node("If", ["c"], ["y"], then_branch=inner, else_branch=inner), node("Relu", ["a"], ["z"]),
             node("MatMul", ["x", "w"], ["a"])]  # fmt: skip
    proto = file(nodes, x, ["y"], {"w": floats(4, 4), "c": np.array(True)})
    assert reached(check(proto, x), **x) == {"w"}


def test_a_bias_that_is_the_mean_of_its_norm_too() -> None:
    x = {"x": floats(2, 3, 4)}
    nodes = [node("BatchNormalization", ["x", "ones", "zeros", "zeros", "ones"], ["y"])]
    model = check(file(nodes, x, ["y"], {"ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)}), x)
    assert reached(model, **x) == {"ones", "zeros"}
