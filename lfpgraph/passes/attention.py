"""Fused attention of the CPU and its backward form written out in plain operations, for graphs that are exported.

The functions have the signatures of torch's kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import OnnxError

__all__ = ["attention_backward_written_out", "attention_written_out"]


def _attention_weights(
    q: Tensor, k: Tensor, dropout: float, causal: bool, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, float]:
    """The softmax, and the scale. Forward and backward write the same operations, and equal nodes become one."""
    if dropout:
        raise OnnxError("attention with dropout draws its mask inside a kernel; set the attention's dropout to 0")
    if q.shape[1] != k.shape[1]:
        raise OnnxError("attention whose queries and keys differ in heads has no ONNX form here")
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.matmul(q * factor, k.transpose(-1, -2))
    if causal:
        rows, columns = q.shape[-2], k.shape[-2]
        seen = torch.ones((rows, columns), dtype=torch.bool, device=q.device).tril()
        scores = torch.where(seen, scores, -math.inf)
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1), factor


def attention_written_out(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *, attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The attention; its log-sum-exp is zeros, since our backward does without."""
    weights, _ = _attention_weights(q, k, dropout_p, is_causal, attn_mask, scale)
    return torch.matmul(weights, v), torch.zeros(q.shape[:-1], dtype=torch.float32, device=q.device)


def attention_backward_written_out(
    s: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dropout_p: float, is_causal: bool, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Signals of queries, keys and values."""
    weights, factor = _attention_weights(q, k, dropout_p, is_causal, attn_mask, scale)
    of_v = torch.matmul(weights.transpose(-1, -2), s)
    at_weights = torch.matmul(s, v.transpose(-1, -2))
    at_scores = weights * (at_weights - (s * out).sum(-1, keepdim=True))
    of_q = torch.matmul(at_scores, k) * factor
    return of_q, torch.matmul(at_scores.transpose(-1, -2), q * factor), of_v
