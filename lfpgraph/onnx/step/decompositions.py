"""Operations taken apart into others that ONNX has: the table for make_fx, and what torch does not do for us.

Each function has the signature of the kernel it stands for and works on tensors of any backend. The registry's translators
come first: what they know is not taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from ... import kernels
from ...engine.recurrent import WRITTEN_OUT
from ...passes.attention import attention_backward_written_out, attention_written_out
from ...passes.written_out import batch_norm_written_out, group_norm_written_out
from ..operators import translators  # noqa: F401  (it fills the registry)
from ..registry import DECOMPOSITIONS, TRANSLATORS, decomposes
from . import decompositions_windows  # noqa: F401  (it fills the table)

__all__ = ["decomposition_table"]

aten = torch.ops.aten
# What torch can take apart, but does not among its core decompositions.
_FURTHER = [
    aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training, aten.elu, aten.linalg_vector_norm,
    aten.native_batch_norm,
]  # fmt: skip
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


decomposes(aten._scaled_dot_product_flash_attention_for_cpu.default)(attention_written_out)
decomposes(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)(attention_backward_written_out)
decomposes(aten.native_group_norm.default)(group_norm_written_out)


@decomposes(aten._native_batch_norm_legit_functional.default)
def batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """With batch statistics, centred once for all that needs it; else as torch has it."""
    if rest[4] and x.dtype not in kernels.LOW_PRECISION:
        return batch_norm_written_out(x, *rest[:4], *rest[5:])
    op = aten._native_batch_norm_legit_functional.default
    return get_decompositions([op])[op](x, *rest)  # type: ignore[operator]


@decomposes(aten._trilinear.default)
def trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand_a: Sequence[int], expand_b: Sequence[int], expand_c: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """`nn.Bilinear` and its derivatives: a product of three tensors, each with axes of one put in, summed over some axes."""
    widened = []
    for t, axes in ((a, expand_a), (b, expand_b), (c, expand_c)):
        for axis in sorted(axes):
            t = t.unsqueeze(axis)
        widened.append(t)
    a, b, c = widened
    return (a * c * b).sum(list(sumdim))


@decomposes(aten.var_mean.correction)
def var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """In operations of ATen; torch's own form has others, which no later pass takes."""
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    mean = x.mean(dims, keepdim=True)
    centred, count = x - mean, math.prod(x.shape[d] for d in dims)
    variance = (centred * centred).sum(dims, keepdim=True) / (count - (1 if correction is None else correction))
    if not keepdim:
        variance, mean = variance.squeeze(dims), mean.squeeze(dims)
    return variance, mean


@decomposes(aten.var.correction)
def var(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return var_mean(x, dim, **options)[0]
