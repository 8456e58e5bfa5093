"""Operations taken apart into others that ONNX has: the table for make_fx, and what torch does not do for us.

Each function has the signature of the kernel it stands for and works on tensors of any backend. The registry's translators
come first: what they know is not taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from ... import kernels
from ...engine.recurrent import WRITTEN_OUT
from ...errors import OnnxError
from ...passes.written_out import batch_norm_written_out, group_norm_written_out
from ..operators import translators  # noqa: F401  (it fills the registry)
from ..registry import DECOMPOSITIONS, TRANSLATORS, decomposes
from . import decompositions_windows  # noqa: F401  (it fills the table)

__all__ = ["decomposition_table"]

aten = torch.ops.aten
# What torch can take apart, but does not among its core decompositions.
_FURTHER = [
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.elu,
    aten.linalg_vector_norm,
    aten.native_batch_norm,
    aten.var,
    aten.var_mean,
]
# What torch would take apart, and its exporter has an operator for.
_WHOLE = {
    aten._unsafe_index_put, aten.arange, aten.clamp_max, aten.clamp_min, aten.empty_like, aten.floor_divide, aten.sum,
    aten.tril, aten.triu,
}  # fmt: skip


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Decompositions for make_fx: ours, those of our own operations, then torch's for what is not translated as a whole."""
    torchs = {**core_aten_decompositions(), **get_decompositions(_FURTHER)}
    table = {**torchs, **kernels.DECOMPOSITIONS, **WRITTEN_OUT, **DECOMPOSITIONS}
    return {op: how for op, how in table.items() if op not in TRANSLATORS and op.overloadpacket not in _WHOLE}


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


@decomposes(aten._scaled_dot_product_flash_attention_for_cpu.default)
def attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *, attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The attention; its log-sum-exp is zeros, since our backward does without."""
    weights, _ = _attention_weights(q, k, dropout_p, is_causal, attn_mask, scale)
    return torch.matmul(weights, v), torch.zeros(q.shape[:-1], dtype=torch.float32, device=q.device)


@decomposes(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def attention_backward(
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


decomposes(aten.native_group_norm.default)(group_norm_written_out)


@decomposes(aten._native_batch_norm_legit_functional.default)
def batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """With batch statistics, centred once for all that needs it; else as torch has it."""
    if rest[4] and x.dtype not in kernels.LOW_PRECISION:
        return batch_norm_written_out(x, *rest[:4], *rest[5:])
    op = aten._native_batch_norm_legit_functional.default
    return get_decompositions([op])[op](x, *rest)  # type: ignore[operator]
