"""Graphs that onnxruntime refuses, or that it understands otherwise than they look: refused at once, or understood as there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lfpgraph
from lfpgraph.errors import OnnxError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lfpgraph.onnx import load  # noqa: E402

from .support.onnx_files import make  # noqa: E402

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
ONES = np.ones((3, 3), np.float32)
TRUE, FEW, MANY = np.array(True), np.int64(3), np.int64(2**62)


def one(kind: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), ["y"], name="here", **attributes)


def graph(nodes: list[Any], inputs: dict[str, int], outputs: dict[str, int], values: list[Any] | None = None) -> Any:
    """A graph inside of a node; inputs and outputs by name and type."""
    infos = [
        [helper.make_tensor_value_info(n, kind, None if kind == 1 else []) for n, kind in side.items()]
        for side in (inputs, outputs)
    ]
    return helper.make_graph(nodes, "inside", *infos, values)


def branch(kind: str = "Relu", reads: str = "x", name: str = "o", **more: Any) -> Any:
    return graph([helper.make_node(kind, [reads], [name])], {}, {name: 1}, **more)


def body(*nodes: Any, condition: str = "Identity") -> Any:
    """Of a loop: `s` is the relu of `r`; the condition goes through an operator."""
    inner = [helper.make_node(condition, ["c"], ["d"]), helper.make_node("Relu", ["r"], ["s"]), *nodes]
    return graph(inner, {"i": 7, "c": 9, "r": 1}, {"d": 9, "s": 1})


def file(nodes: Any, **values: Any) -> Any:
    return make(nodes if isinstance(nodes, list) else [nodes], {"x": [2, 3]}, ["y"], values)


def with_graph(change: Callable[[Any], Any]) -> Any:
    proto = file(one("Relu", "x"))
    change(proto)
    return proto


def two_tables(where: Any) -> None:
    where.initializer.extend(numpy_helper.from_array(factor * ONES, "w") for factor in (1, 2))


def scan(**attributes: Any) -> Any:
    inner = [helper.make_node("Add", ["s", "a"], ["t"]), helper.make_node("Add", ["t", "b"], ["u"])]
    return one(
        "Scan",
        "start",
        "x",
        "z",
        body=graph(inner, {"s": 1, "a": 1, "b": 1}, {"u": 1}),
        num_scan_inputs=2,
        **attributes,
    )


def sequence(kind: str, *reads: str) -> Any:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node(kind, ["s", *reads], ["q"])]
    return [*nodes, one("ConcatFromSequence", "q", axis=0)]


def conv(**attributes: Any) -> Any:
    proto = file(one("Conv", "x", "w", **attributes), w=np.ones((1, 2, 1), np.float32))
    proto.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    return proto


ZERO, LONG = np.zeros(3, np.float32), np.ones((4, 3), np.float32)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two initializers": (lambda: with_graph(lambda p: two_tables(p.graph)), "two initializers are named 'w'"),
    "two initializers inside": (
        lambda: file(one("If", "c", then_branch=branch(values=None), else_branch=with_two()), c=TRUE), "two initializers"),
    "two inputs": (lambda: with_graph(lambda p: p.graph.input.append(p.graph.input[0])), "two inputs are named 'x'"),
    "an output without a name": (lambda: with_graph(lambda p: p.graph.output.add()), "nothing makes the output ''"),
    "a format of the future": (lambda: with_graph(lambda p: setattr(p, "ir_version", 999)), "IR version 999"),
    "a value of around made inside": (
        lambda: file(one("If", "c", then_branch=branch(name="w"), else_branch=branch()), c=TRUE, w=ONES), "make 'w'"),
    "a condition of several": (
        lambda: file(one("If", "c", then_branch=branch(), else_branch=branch("Neg")), c=np.array([True, False])),
        "If 'here' takes one condition"),
    "a condition of several, of data": (
        lambda: file([helper.make_node("Greater", ["x", "z"], ["c"]), one("If", "c", then_branch=branch(),
                     else_branch=branch("Neg"))], z=np.float32(0)), "If 'here' takes one condition"),
    "an If with one branch": (lambda: file(one("If", "c", then_branch=branch()), c=TRUE), "'else_branch' is missing"),
    "a branch that takes something": (
        lambda: file(one("If", "c", then_branch=graph([helper.make_node("Relu", ["k"], ["o"])], {"k": 1}, {"o": 1}),
                         else_branch=branch()), c=TRUE), "If 'here' holds a graph that takes 1 values"),
    "branches that give another number": (
        lambda: file(one("If", "c", then_branch=branch(), else_branch=graph([helper.make_node("Relu", ["x"], ["o"])],
                     {}, {"o": 1, "x": 1})), c=TRUE), "gives 1, not 0 and 2"),
    "a loop of 2^62 rounds": (
        lambda: file(one("Loop", "n", "", "x", body=body()), n=MANY),
        "asks for 4611686018427387904 rounds; give up to 16,384"),
    "a loop without end": (lambda: file(one("Loop", "", "t", "x", body=body()), t=TRUE), "asks for endless rounds"),
    "counts of several": (
        lambda: file(one("Loop", "n", "", "x", body=body()), n=np.array([2, 3])), "takes one count of rounds"),
    "a count that is no whole number": (
        lambda: file(one("Loop", "n", "", "x", body=body()), n=np.float32(2.5)), "takes one count of rounds"),
    "a body that takes less": (
        lambda: file(one("Loop", "n", "", body=body()), n=FEW), "takes 3 values and gives 2, not 2 and 2"),
    "series of other lengths": (lambda: file(scan(), start=ZERO, z=LONG), "goes over lengths"),
    "fewer axes than series": (lambda: file(scan(scan_input_axes=[0]), start=ZERO, z=LONG), "goes over lengths"),
    "an output too many": (
        lambda: file([helper.make_node("Relu", ["x"], ["k", "z"]), one("Relu", "x")]), "output size 2"),
    "an input too few": (lambda: file(one("MatMul", "x")), "input size 1"),
    "a needed input left out": (lambda: file(one("MatMul", "x", "")), "empty string"),
    "an attribute that is not known": (lambda: file(one("Relu", "x", alpha=3.0)), "Unrecognized attribute: alpha"),
    "an attribute of another type": (lambda: file(one("Softmax", "x", axis=0.5)), "Expected: 'INT'"),
    "a needed attribute left out": (lambda: file(one("Cast", "x")), "'to' is missing"),
    "an item beyond the end": (lambda: file(sequence("SequenceErase", "k"), k=np.int64(9)), "asks for item 9 of 2"),
    "an item put beyond the end": (lambda: file(sequence("SequenceInsert", "x", "k"), k=np.int64(9)), "item 9 of 2"),
    "a kernel that is not the weight's": (lambda: conv(kernel_shape=[2]), "kernel_shape"),
    "padding that is not known": (lambda: conv(auto_pad="WEIRD"), "'WEIRD'"),
    "padding below zero": (lambda: conv(pads=[-1, 0]), "padding"),
}  # fmt: skip


def with_two() -> Any:
    found = branch()
    two_tables(found)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnxruntime_refuses_is_refused(name: str) -> None:
    make_file, message = REFUSED[name]
    proto = make_file()
    x = X[..., None] if proto.graph.node[0].op_type == "Conv" else X
    with pytest.raises(OnnxError) as error:
        load(proto)(torch.tensor(x))
    assert message in str(error.value)
    if "rounds" in message or name in ("two initializers", "a loop without end"):
        return  # which onnxruntime would run, or takes the last of
    with pytest.raises(Exception):  # noqa: B017  (its classes share no base)
        onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})


def functions(domain: str, kind: str) -> Any:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    turned = helper.make_function(domain, kind, ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], opsets)
    proto = file(helper.make_node(kind, ["x"], ["y"], domain=domain))
    proto.functions.append(turned)
    proto.opset_import.append(opsets[1])
    return proto


TAKEN: dict[str, Callable[[], Any]] = {
    "a function named as an operator": lambda: functions("", "Relu"),
    "a function named as a fused operator": lambda: functions("com.microsoft", "Gelu"),
    "a count beyond the limit, and one round": lambda: file(one("Loop", "n", "", "x", body=body(condition="Not")), n=MANY),
    "no round": lambda: file(one("Loop", "n", "", "x", body=body()), n=np.int64(-5)),
    "a count beyond the limit, and a condition": lambda: file(
        one("Loop", "n", "", "x", body=graph(
            [helper.make_node("Less", ["i", "three"], ["d"]), helper.make_node("Add", ["r", "r"], ["s"])],
            {"i": 7, "c": 9, "r": 1}, {"d": 9, "s": 1})), n=MANY, three=FEW),
    "a name of around for an input inside": lambda: file(
        one("Loop", "n", "", "x", body=graph(
            [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["x", "x"], ["s"])],
            {"i": 7, "c": 9, "x": 1}, {"d": 9, "s": 1})), n=FEW),
    "a name of around for a table inside": lambda: file(
        one("If", "c", then_branch=graph([helper.make_node("MatMul", ["x", "w"], ["o"])], {}, {"o": 1},
            [numpy_helper.from_array(3 * ONES, "w")]), else_branch=branch()), c=TRUE, w=ONES),
    "an optional input left out": lambda: file(one("Clip", "x", "", "top"), top=np.float32(1)),
    "an output twice": lambda: with_graph(lambda p: p.graph.output.append(p.graph.output[0])),
    "an initializer that is an input": lambda: with_default(),
}  # fmt: skip


def with_default() -> Any:
    proto = file(one("MatMul", "x", "w"), w=ONES)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 3]))
    return proto


@pytest.mark.parametrize("name", TAKEN)
def test_what_onnxruntime_runs_gives_the_same(name: str) -> None:
    proto = TAKEN[name]()
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})
    found = load(proto)(torch.tensor(X))
    for ours, theirs in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-6, atol=1e-6)


def test_a_condition_that_stays_true_is_stopped_by_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfpgraph.onnx.imports.sequences._MOST_ROUNDS", 20)
    still = graph(
        [helper.make_node("Less", ["i", "n"], ["d"]), helper.make_node("Relu", ["r"], ["s"])],
        {"i": 7, "c": 9, "r": 1}, {"d": 9, "s": 1},
    )  # fmt: skip
    proto = file(one("Loop", "", "", "x", body=still), n=MANY)
    with pytest.raises(OnnxError, match="Loop 'here' is not over after 20 rounds"):
        load(proto)(torch.tensor(X))


def test_weights_that_a_loop_hands_on_as_its_state_train() -> None:
    """As tf2onnx writes a layer that runs in a loop; what changes from round to round is no weight."""
    inner = graph(
        [helper.make_node("MatMul", ["r", "v"], ["p"]), helper.make_node("Tanh", ["p"], ["s"]),
         helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["u"])],
        {"i": 7, "c": 9, "r": 1, "v": 1}, {"d": 9, "s": 1, "u": 1},
    )  # fmt: skip
    loop = helper.make_node("Loop", ["n", "", "start", "w"], ["h", "w2"], body=inner)
    start = 0.5 * np.ones((2, 3), np.float32)
    proto = file([loop, one("Add", "h", "x")], n=FEW, w=0.1 * ONES, start=start)
    model = load(proto)
    assert [name for name, _ in model.named_parameters()] == ["w"]
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})[0]
    found = model(torch.tensor(X))
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-6, atol=1e-6)
    lfpgraph.wrap(model)
    model(torch.tensor(X)).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters())
