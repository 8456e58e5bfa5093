"""ONNX files that were right until somebody changed bytes, numbers or names in them."""

from __future__ import annotations

import functools
import random

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from lfpgraph.errors import LfpGraphError
from lfpgraph.onnx import load
from lfpgraph.onnx.imports.table import IMPORTERS

from .onnx_files import make, small_mlp

__all__ = ["outcome"]

KINDS = sorted(IMPORTERS) + ["If", "MatMulInteger", "Resize"]


@functools.cache
def valid_files() -> list[bytes]:
    """What the fuzz starts from: an MLP, a CNN with norm and shapes made of shapes, a recurrent one."""
    draw = np.random.default_rng(0)
    weight = {"w": draw.normal(size=(4, 1, 3, 3)), "s": np.ones(4), "b": np.zeros(4), "m": np.zeros(4), "v": np.ones(4)}
    values = {name: value.astype(np.float32) for name, value in weight.items()}
    values |= {"rest": np.array([-1]), "zero": np.array(0), "axes": np.array([0]), "two": np.array(2.0, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("Shape", ["d"], ["e"]),
        helper.make_node("Gather", ["e", "zero"], ["f"], axis=0),
        helper.make_node("Unsqueeze", ["f", "axes"], ["g"]),
        helper.make_node("Concat", ["g", "rest"], ["h"], axis=0),
        helper.make_node("Reshape", ["d", "h"], ["i"]),
        helper.make_node("Pow", ["i", "two"], ["j"]),
        helper.make_node("ReduceMean", ["j"], ["y"], axes=[1], keepdims=1),
    ]
    cnn = make(nodes, {"x": ["n", 1, 8, 8]}, ["y"], values)
    cells = {"w": draw.normal(size=(1, 12, 4)).astype(np.float32), "r": draw.normal(size=(1, 12, 3)).astype(np.float32)}
    step = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=3)]
    return [model.SerializeToString() for model in (small_mlp(), cnn, make(step, {"x": [5, "n", 4]}, ["y"], cells))]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite some bytes."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(found) + 1)
        how = draw.randrange(5)
        if how == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            del found[at : at + draw.randrange(1, 20)]
        elif how == 2:
            found[at:at] = found[at : at + draw.randrange(1, 40)]
        elif how == 3:
            found[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            found[at : at + 4] = draw.choice((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", draw.randbytes(4)))
    return bytes(found)


def mutate_graph(data: bytes, draw: random.Random) -> bytes:
    """Change a number, a name, an operator or a shape of a file that stays a protobuf."""
    proto = onnx.ModelProto.FromString(data)
    numbers = (0, 1, -1, 2, 3, 7, 1000, 2**20, 2**31, 2**62, -(2**62))
    for _ in range(draw.choice((1, 1, 2, 3))):
        node, tensor = draw.choice(proto.graph.node), draw.choice(proto.graph.initializer)
        names = [name for other in proto.graph.node for name in (*other.input, *other.output)]
        how = draw.randrange(7)
        if how == 0 and node.attribute:
            attribute = draw.choice(node.attribute)
            if attribute.ints:
                attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(numbers)
            else:
                attribute.i = draw.choice(numbers)
        elif how == 1 and node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(names)
        elif how == 2:
            node.op_type = draw.choice(KINDS)
        elif how == 3 and tensor.raw_data:
            size = len(tensor.raw_data) // max(1, int(np.prod(tensor.dims)))
            tensor.dims[:] = draw.choice(([len(tensor.raw_data) // size], [1, len(tensor.raw_data) // size], [0], []))
        elif how == 4 and tensor.data_type == TensorProto.INT64:
            tensor.raw_data = draw.choice(numbers).to_bytes(8, "little", signed=True)
        elif how == 5 and node.input:
            del node.input[draw.randrange(len(node.input))]
        else:
            proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = draw.choice((0, 1, 5, 2**40))
    return proto.SerializeToString()


def outcome(seed: int) -> str:
    """Load a mutated file and run it: "refused", "failed" (both with an error of ours), or "ran"; other errors go through."""
    draw = random.Random(seed)
    data = draw.choice((mutate, mutate_graph))(draw.choice(valid_files()), draw)
    try:
        model = load(data)
    except LfpGraphError:
        return "refused"
    try:
        with torch.no_grad():
            model(*model.example())
    except LfpGraphError:
        return "failed"
    return "ran"
