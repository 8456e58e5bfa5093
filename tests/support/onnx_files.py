"""ONNX files made by hand, node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["make", "small_mlp"]


def make(
    nodes: list[Any], inputs: dict[str, list[Any]], outputs: list[str], values: dict[str, Any], opset: int = 17
) -> Any:
    """A ModelProto of float inputs and outputs."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def small_mlp(opset: int = 17) -> Any:
    """Two linear layers and a relu, one layer as Gemm and one as MatMul and Add."""
    draw = np.random.default_rng(0)
    values = {name: draw.normal(size=size).astype(np.float32) for name, size in
              (("fc1.weight", (16, 8)), ("fc1.bias", (16,)), ("fc2.weight", (16, 3)), ("fc2.bias", (3,)))}  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["a"], transB=1, name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "fc2.weight"], ["c"]),
        helper.make_node("Add", ["c", "fc2.bias"], ["y"]),
    ]
    return make(nodes, {"x": ["n", 8]}, ["y"], values, opset)
