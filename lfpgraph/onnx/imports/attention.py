"""ONNX's Attention operator (opset 23) in torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, imports

_ATTRIBUTES = {
    "is_causal",
    "kv_num_heads",
    "q_num_heads",
    "qk_matmul_output_mode",
    "scale",
    "softcap",
    "softmax_precision",
}


@imports("Attention")
def attention(
    node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *cache: Tensor | None
) -> Any:  # fmt: skip
    """Heads apart [n, heads, length, width], or side by side [n, length, heads * width] with their number given."""
    unknown = sorted(set(node.attributes) - _ATTRIBUTES)
    if any(item is not None for item in cache) or node.outputs > 1 or node.get("softcap", 0.0) or unknown:
        raise OnnxError(f"Attention {node.name!r}: caches, further outputs, softcap, {unknown} are not supported")
    causal, scale = bool(node.get("is_causal", 0)), node.get("scale")
    joined = q.dim() == 3
    if joined:
        q = _apart(q, node.get("q_num_heads"))
        k, v = (_apart(x, node.get("kv_num_heads")) for x in (k, v))
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if causal and (mask is not None or q.shape[-2] != k.shape[-2]):
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        mask = seen if mask is None else _both(seen, mask)
        causal = False
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2).flatten(2) if joined else out


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _both(seen: Tensor, mask: Tensor) -> Tensor:
    return seen & mask if mask.dtype == torch.bool else torch.where(seen, mask, float("-inf"))
