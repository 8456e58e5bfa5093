"""Which tensors of a file are parameters, and quantised weights in float, so that they train."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .programs import Line
from .quantised import spread
from .table import operator_of

__all__ = ["Dequantised", "dequantised", "is_weight", "weights_of"]

# Operators by the positions of their weights. Those in `_TERMS` may have one on either side; other operators have none.
_PLACES = {
    (0,): "Gather",
    (0, 1): "MatMul com.microsoft.FusedMatMul",
    (0, 1, 2): "Gemm com.microsoft.FusedGemm",
    (1,): "ConvInteger MatMulInteger PRelu RMSNormalization SimplifiedLayerNormalization com.microsoft.BiasGelu "
    "com.microsoft.FastGelu",
    (1, 2): "BatchNormalization Conv ConvTranspose GroupNormalization InstanceNormalization LayerNormalization "
    "ai.onnx.ml.LinearClassifier ai.onnx.ml.LinearRegressor ai.onnx.ml.Scaler com.microsoft.Attention "
    "com.microsoft.FusedConv com.microsoft.QAttention",
    (1, 2, 3): "GRU LSTM RNN ai.onnx.ml.SVMRegressor com.microsoft.DynamicQuantizeLSTM",
    (1, 4): "com.microsoft.DynamicQuantizeMatMul",
    (1, 6): "com.microsoft.MatMulIntegerToFloat",
    (2, 3): "com.microsoft.SkipSimplifiedLayerNormalization",
    (2, 3, 4): "com.microsoft.SkipLayerNormalization",
    (2, 3, 4, 5, 6): "com.microsoft.EmbedLayerNormalization",
    (3,): "QLinearConv QLinearMatMul com.microsoft.MultiHeadAttention com.microsoft.QGemm",
}  # fmt: skip
_WEIGHTS = {kind: places for places, kinds in _PLACES.items() for kind in kinds.split()}
_TERMS = ("Add", "Mul", "Sub")
_MOVES = (
    "Cast", "Concat", "DequantizeLinear", "Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    "com.microsoft.DequantizeLinear",
)  # fmt: skip
# Positions of a whole-number weight, of its scale and of its zero point; no scale where the product is scaled later.
_QUANTISED: dict[str, list[tuple[int, int | None, int]]] = {
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), [(1, None, 3)]),
    **dict.fromkeys(("DequantizeLinear", "com.microsoft.DequantizeLinear"), [(0, 1, 2)]),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "com.microsoft.QGemm"), [(3, 4, 5)]),
    "com.microsoft.DynamicQuantizeLSTM": [(1, 8, 9), (2, 10, 11)],
    "com.microsoft.DynamicQuantizeMatMul": [(1, 2, 3)], "com.microsoft.MatMulIntegerToFloat": [(1, 3, 5)],
    "com.microsoft.QAttention": [(1, 4, 7)],
}  # fmt: skip
_MOST_PARTS = 64  # tensors that one weight is put together from


def is_weight(name: str, tensor: Tensor, chosen: set[str], trainable: Any) -> bool:
    """Whether an initializer trains: by `trainable`, as `load` has it, else by `chosen`, which `weights_of` has found."""
    if callable(trainable):
        return bool(trainable(name, tensor))
    if trainable is not None:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in trainable)
    read = name in chosen and (tensor.numel() > 1 or f"{name}\0weight" in chosen)
    return read and bool(torch.isfinite(tensor).all())


def weights_of(tensors: Iterable[str], lines: Sequence[Line]) -> set[str]:
    """Names of tensors that are read as weights; `name\\0weight` marks those that may have one element, `name\\0size` scales."""
    sources: dict[str, list[str]] = {name: [name] for name in tensors}
    found: set[str] = set()
    for line in reversed(lines):  # what a loop is given as its state, and hands on as it is, has another name inside
        for body in line.bodies:
            sources |= {i: sources[o] for i, o in zip(body.inputs, line.reads) if i in body.outputs and o in sources}
    for line in lines:
        kind = operator_of(line.item)
        if kind in _MOVES:
            moved = [n for name in line.reads[: None if kind == "Concat" else 1] for n in sources.get(name, ())]
            sources.update(dict.fromkeys(line.makes, moved[:_MOST_PARTS]) if moved else {})
        if kind in ("Resize", "Upsample"):  # what they are scaled by must be known while tracing
            found.update(f"{name}\0size" for name in line.reads[1:])
        slots = _WEIGHTS.get(kind, (0, 1) if kind in _TERMS else ())
        for name in {n for slot in slots if slot < len(line.reads) for n in sources.get(line.reads[slot], ())}:
            found.add(name)
            if kind in _WEIGHTS and kind != "Gather":
                found.add(f"{name}\0weight")
    return found


class Dequantised(nn.Module):
    """A quantised weight that trains: `value` is what it stands for; operators get the numbers that it is stored as."""

    scale: Tensor
    zero: Tensor

    def __init__(self, source: str, whole: Tensor, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.source = source  # the scale's name, which does not train beside it
        self.value = nn.Parameter((whole.to(scale.dtype) - zero) * scale)
        self.register_buffer("scale", torch.where(scale == 0, 1, scale))
        self.register_buffer("zero", zero)

    def forward(self) -> Tensor:
        return self.value / self.scale + self.zero


def dequantised(tensors: Mapping[str, Tensor], lines: Sequence[Line]) -> dict[str, Dequantised]:
    """Whole-number weights whose scales the file holds, by name."""
    found: dict[str, Dequantised] = {}
    for line in lines:
        kind = operator_of(line.item)
        for at, *others in _QUANTISED.get(kind, ()):
            names = [line.reads[i] if i is not None and i < len(line.reads) else "" for i in (at, *others)]
            whole, zero = tensors.get(names[0]), tensors.get(names[2])
            names[1] = names[1] if others[0] is not None else _scale_behind(line, lines, tensors)
            scale = tensors.get(names[1])
            if whole is not None and scale is not None and (zero is not None or not names[2]):
                zero = torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)
                placed = (_placed(kind, line.attributes, whole, v) for v in (scale, zero))
                found[names[0]] = Dequantised(names[1], whole, *placed)
    return found


def _placed(kind: str, attributes: Mapping[str, Any], whole: Tensor, values: Tensor) -> Tensor:
    """Scales or zero points in a shape that goes with their weight."""
    if values.numel() > 1 and kind.endswith("LSTM"):  # [directions, inputs, 4 * hidden]
        return values.reshape(whole.shape[0], 1, -1)
    axis = 0 if "Conv" in kind or attributes.get("transB", 0) else -1
    return spread(attributes.get("axis", 1) if kind.endswith("DequantizeLinear") else axis, whole, values)


def _scale_behind(line: Line, lines: Sequence[Line], tensors: Mapping[str, Tensor]) -> str:
    """The scale of the weight of a product of integers: what the product is multiplied by, or is in what it is multiplied by."""
    makers = {name: other for other in lines for name in other.makes}
    name = line.makes[0]
    for other in lines:
        if name in other.reads and other.item.op_type == "Cast":
            name = other.makes[0]
        elif name in other.reads and other.item.op_type == "Mul":
            by = [n for n in other.reads if n != name]
            inside = [n for n in by if n in makers for n in makers[n].reads]
            return next((n for n in (*by, *inside) if n in tensors), "")
    return ""
