"""Which initializers of an ONNX file are parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_weight", "weights_of"]

# Positions of an operator's weights. Those in `_TERMS` may have one on either side; other operators have none.
_WEIGHTS: dict[str, Sequence[int]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
_TERMS = ("Add", "Mul", "Sub")
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def is_weight(name: str, tensor: Tensor, chosen: set[str], trainable: Any) -> bool:
    """Whether an initializer trains: by `trainable`, as `load` has it, else by `chosen`, which `weights_of` has found."""
    if callable(trainable):
        return bool(trainable(name, tensor))
    if trainable is not None:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in trainable)
    if name not in chosen:
        return False
    return bool(torch.isfinite(tensor).all()) and (tensor.numel() > 1 or f"{name}\0weight" in chosen)


def weights_of(graph: Any) -> set[str]:
    """Names of initializers that are read as weights; `name\\0weight` marks those that may have one element."""
    source: dict[str, str] = {t.name: t.name for t in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in _MOVES and node.input and node.input[0] in source and node.output:
            source[node.output[0]] = source[node.input[0]]
        slots = _WEIGHTS.get(node.op_type, (0, 1) if node.op_type in _TERMS else ())
        for slot in slots:
            if slot < len(node.input) and node.input[slot] in source:
                name = source[node.input[slot]]
                found.add(name)
                if node.op_type in _WEIGHTS and node.op_type != "Gather":
                    found.add(f"{name}\0weight")
    return found
