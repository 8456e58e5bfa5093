"""Operators of other domains: fused ones, which onnxruntime's own optimizer writes (com.microsoft), linear ones of ai.onnx.ml."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .layers import conv, gemm
from .quantised import matmul_to_float
from .table import IMPORTERS, Node, imports

for _kind, _function in {
    "BiasGelu": lambda x, node: F.gelu(x),
    "FastGelu": lambda x, node: F.gelu(x, approximate="tanh"),
    "Gelu": lambda x, node: F.gelu(x),
    "QuickGelu": lambda x, node: x * torch.sigmoid(node.get("alpha", 1.702) * x),
}.items():
    imports(f"com.microsoft.{_kind}")(lambda node, x, bias=None, f=_function: f(x if bias is None else x + bias, node))


def _activated(node: Node, x: Tensor) -> Any:
    """The activation that a fused operator ends with."""
    kind = node.get("activation")
    if not kind:
        return x
    if kind not in IMPORTERS:
        raise OnnxError(f"{node.kind} {node.name!r}: activation {kind!r} is not known")
    given = node.get("activation_params") or []
    if kind == "Clip":
        return torch.clamp(x, *given)
    names = {"LeakyRelu": ["alpha"], "HardSigmoid": ["alpha", "beta"]}.get(kind, [])
    params = dict(zip(names, given)) or {k: node.get(f"activation_{k}") for k in names if node.get(f"activation_{k}")}
    return IMPORTERS[kind](Node(kind, node.name, node.version, params), x)


@imports("com.microsoft.FusedConv")
def fused_conv(node: Node, x: Tensor, w: Tensor, bias: Any = None, more: Any = None) -> Any:
    found = conv(node, x, w, bias)
    return _activated(node, found if more is None else found + more)


@imports("com.microsoft.FusedGemm")
def fused_gemm(node: Node, a: Tensor, b: Tensor, c: Any = None) -> Any:
    return _activated(node, gemm(node, a, b, c))


@imports("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
def fused_matmul(node: Node, a: Tensor, b: Tensor) -> Any:
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        raise OnnxError(f"FusedMatMul {node.name!r} with transposed batches is not supported")
    a = a.transpose(-1, -2) if node.get("transA", 0) else a
    found, alpha = a @ (b.transpose(-1, -2) if node.get("transB", 0) else b), node.get("alpha", 1.0)
    return found if alpha == 1 else alpha * found


@imports("SimplifiedLayerNormalization")
def simplified_norm(node: Node, x: Tensor, scale: Tensor) -> Any:
    return F.rms_norm(x, list(scale.shape), scale, node.get("epsilon", 1e-5))


@imports("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def skip_norm(node: Node, x: Tensor, skip: Tensor, scale: Tensor, *more: Any) -> Any:
    """`more`: a shift, which the simplified norm has not, and a bias of the sum."""
    simple = node.kind == "SkipSimplifiedLayerNormalization"
    shift, bias = [*[None] * simple, *more, None, None][:2]
    total, epsilon = x + skip if bias is None else x + skip + bias, node.get("epsilon", 1e-12)
    shape = list(scale.shape)
    found = simplified_norm(node, total, scale) if simple else F.layer_norm(total, shape, scale, shift, epsilon)
    return (found, None, None, total) if node.outputs > 1 else found


@imports("com.microsoft.EmbedLayerNormalization")
def embed_norm(
    node: Node, words: Tensor, segments: Any, word: Tensor, place: Tensor, segment: Any, scale: Tensor, shift: Tensor,
    mask: Any = None, places: Any = None
) -> Any:  # fmt: skip
    at = torch.arange(words.shape[1]).expand(words.shape) if places is None else places
    total = F.embedding(words.long(), word) + F.embedding(at.long(), place)
    if segments is not None and segment is not None:
        total = total + F.embedding(segments.long(), segment)
    found = F.layer_norm(total, list(scale.shape), scale, shift, node.get("epsilon", 1e-12))
    counts = words.new_zeros(words.shape[0]) if mask is None else mask.sum(1, dtype=torch.int32)
    return (found, counts, total)[: node.outputs] if node.outputs > 1 else found


def _attended(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Any = None) -> Tensor:
    """Heads side by side [n, length, heads * width]; mask [n], lengths, or [n, keys] or more, 1 where keys are seen."""
    heads = node.get("num_heads")
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) if x.dim() == 3 else x for x in (q, k, v))
    lowest = node.get("mask_filter_value", -10000.0)
    if mask is not None:
        if mask.dim() == 1:
            mask = torch.arange(k.shape[-2]) < mask[: k.shape[0]].unsqueeze(1)
        mask = mask.reshape(mask.shape[0], *[1] * (4 - mask.dim()), *mask.shape[1:])
        mask = torch.where(mask > 0, 0.0, lowest)
        bias = mask if bias is None else bias + mask
    if node.get("unidirectional", 0):
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])
        bias = torch.where(seen, 0.0 if bias is None else bias, float("-inf"))
    out = F.scaled_dot_product_attention(q, k, v, bias, scale=node.get("scale") or None)
    return out.transpose(1, 2).flatten(2)


def _refuse_more(node: Node, *more: Any) -> None:
    if any(item is not None for item in more) or node.outputs > 1 or node.get("do_rotary", 0):
        raise OnnxError(f"{node.kind} {node.name!r}: caches, rotation and further outputs are not supported")


@imports("com.microsoft.Attention")
def attention(
    node: Node, x: Tensor, w: Tensor, bias: Any = None, mask: Any = None, past: Any = None, more: Any = None, *rest: Any
) -> Any:  # fmt: skip
    """The projections to queries, keys and values, one beside the other, and attention."""
    _refuse_more(node, past, *rest)
    q, k, v = F.linear(x, w.t(), bias).split(node.get("qkv_hidden_sizes") or [w.shape[1] // 3] * 3, -1)
    return _attended(node, q, k, v, mask, more)


@imports("com.microsoft.QAttention")
def quantised_attention(
    node: Node, x: Tensor, w: Tensor, bias: Tensor, xs: Tensor, ws: Tensor, mask: Any = None, xz: Any = None,
    wz: Any = None, past: Any = None
) -> Any:  # fmt: skip
    _refuse_more(node, past)
    q, k, v = matmul_to_float(node, x, w, xs, ws, xz, wz, bias).chunk(3, -1)
    return _attended(node, q, k, v, mask)


@imports("com.microsoft.MultiHeadAttention")
def multi_head(
    node: Node, q: Tensor, k: Any = None, v: Any = None, bias: Any = None, mask: Any = None, more: Any = None, *past: Any
) -> Any:  # fmt: skip
    _refuse_more(node, *past)
    if k is None or v is None:
        raise OnnxError(f"{node.kind} {node.name!r} with packed queries, keys and values is not supported")
    if bias is not None:
        parts = bias.split([q.shape[-1], bias.shape[0] - q.shape[-1] - v.shape[-1], v.shape[-1]])
        q, k, v = (x + part for x, part in zip((q, k, v), parts))
    return _attended(node, q, k, v, mask, more)


@imports("ai.onnx.ml.Scaler")
def scaler(node: Node, x: Tensor, offset: Tensor, scale: Tensor) -> Any:
    return (x.to(offset.dtype) - offset) * scale


@imports("ai.onnx.ml.Normalizer")
def normalizer(node: Node, x: Tensor) -> Any:
    powers = {"L1": 1, "L2": 2}
    if node.get("norm", "MAX") not in powers:
        raise OnnxError(f"{node.kind} {node.name!r} by the largest entry is not supported")
    return IMPORTERS["LpNormalization"](Node("", node.name, 20, {"p": powers[node.get("norm")]}), x.to(torch.float32))


def _transformed(node: Node, scores: Tensor) -> Tensor:
    """Scores as `post_transform` wants them."""
    how = node.get("post_transform", "NONE")
    if how not in ("NONE", "LOGISTIC", "SOFTMAX"):
        raise OnnxError(f"{node.kind} {node.name!r} with post_transform {how!r} is not supported")
    return scores if how == "NONE" else scores.sigmoid() if how == "LOGISTIC" else scores.softmax(-1)


@imports("ai.onnx.ml.LinearRegressor")
def linear_regressor(node: Node, x: Tensor, weight: Tensor, bias: Any) -> Any:
    return _transformed(node, F.linear(x.to(weight.dtype), weight.reshape(node.get("targets", 1), -1), bias))


@imports("ai.onnx.ml.LinearClassifier")
def linear_classifier(node: Node, x: Tensor, weight: Tensor, bias: Any) -> Any:
    """Whole numbers as labels, and a row of weights for each."""
    labels = node.get("classlabels_ints")
    if not labels or (bias is not None and len(bias) != len(labels)) or weight.numel() != len(labels) * x.shape[-1]:
        raise OnnxError(f"{node.kind} {node.name!r}: labels of text, or one row for two labels, are not supported")
    scores = F.linear(x.to(weight.dtype), weight.reshape(len(labels), -1), bias)
    return torch.tensor(labels)[scores.argmax(-1)], _transformed(node, scores)


@imports("ai.onnx.ml.SVMRegressor")
def svm_regressor(node: Node, x: Tensor, weight: Tensor, vectors: Any, bias: Tensor) -> Any:
    kind, (gamma, offset, degree) = node.get("kernel_type", "LINEAR"), node.get("kernel_params") or [0.0, 0.0, 3.0]
    x = x.to(weight.dtype)
    if node.get("n_supports", 0) and kind == "RBF":
        apart = x.unsqueeze(-2) - vectors.reshape(node.get("n_supports"), -1)
        x = torch.exp(-gamma * (apart * apart).sum(-1))
    elif node.get("n_supports", 0):
        x = F.linear(x, vectors.reshape(node.get("n_supports"), -1))
        x = x if kind == "LINEAR" else (gamma * x + offset) ** degree if kind == "POLY" else (gamma * x + offset).tanh()
    found = _transformed(node, F.linear(x, weight.reshape(1, -1), bias))
    return torch.where(found > 0, 1.0, -1.0) if node.get("one_class", 0) else found


@imports("ai.onnx.ml.ArrayFeatureExtractor")
def extractor(node: Node, x: Tensor, places: Tensor) -> Any:
    return x.index_select(-1, places.reshape(-1))
