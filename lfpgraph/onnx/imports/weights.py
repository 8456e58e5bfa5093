"""Which tensors of an ONNX file are parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .files import operator_of
from .programs import Line

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
    "SimplifiedLayerNormalization": (1,),
    "com.microsoft.Attention": (1, 2),
    "com.microsoft.BiasGelu": (1,),
    "com.microsoft.DynamicQuantizeLSTM": (3,),
    "com.microsoft.EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "com.microsoft.FastGelu": (1,),
    "com.microsoft.FusedConv": (1, 2),
    "com.microsoft.FusedGemm": (0, 1, 2),
    "com.microsoft.FusedMatMul": (0, 1),
    "com.microsoft.MultiHeadAttention": (3,),
    "com.microsoft.SkipLayerNormalization": (2, 3, 4),
    "com.microsoft.SkipSimplifiedLayerNormalization": (2, 3),
}
_TERMS = ("Add", "Mul", "Sub")
_MOVES = ("Cast", "Concat", "Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_MOST_PARTS = 64  # tensors that one weight is put together from


def is_weight(name: str, tensor: Tensor, chosen: set[str], trainable: Any) -> bool:
    """Whether an initializer trains: by `trainable`, as `load` has it, else by `chosen`, which `weights_of` has found."""
    if callable(trainable):
        return bool(trainable(name, tensor))
    if trainable is not None:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in trainable)
    if name not in chosen:
        return False
    return bool(torch.isfinite(tensor).all()) and (tensor.numel() > 1 or f"{name}\0weight" in chosen)


def weights_of(tensors: Iterable[str], lines: Iterable[Line]) -> set[str]:
    """Names of tensors that are read as weights; `name\\0weight` marks those that may have one element."""
    sources: dict[str, list[str]] = {name: [name] for name in tensors}
    found: set[str] = set()
    for line in lines:
        kind = operator_of(line.item)
        if kind in _MOVES:
            moved = [n for name in line.reads[: None if kind == "Concat" else 1] for n in sources.get(name, ())]
            sources.update(dict.fromkeys(line.makes, moved[:_MOST_PARTS]) if moved else {})
        slots = _WEIGHTS.get(kind, (0, 1) if kind in _TERMS else ())
        for name in {n for slot in slots if slot < len(line.reads) for n in sources.get(line.reads[slot], ())}:
            found.add(name)
            if kind in _WEIGHTS and kind != "Gather":
                found.add(f"{name}\0weight")
    return found
