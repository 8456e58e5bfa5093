"""Copies and rarer views: every output entry is one input entry, or a constant (the true vjp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import VIEW, rows

from .views import vjp

aten = torch.ops.aten


def strided_scatter(
    node: Any, s: Tensor, x: Tensor, src: Tensor, size: Any, stride: Any, offset: int | None = None
) -> list[Tensor | None]:
    """The vjp of a write to a strided view: to x where nothing was written, to src what stands there; torch's is wrong."""
    laid_out = torch.zeros_like(x) + s
    outside = aten.as_strided_scatter(laid_out, torch.zeros_like(src), size, stride, offset)
    return [outside, aten.as_strided_copy(laid_out, size, stride, offset)]


strided_scatter.is_vjp = True  # type: ignore[attr-defined]
rows(VIEW, strided_scatter, [aten.as_strided_scatter.default], needs_vjp=False)

rows(
    VIEW,
    vjp,
    [
        aten._pad_circular.default,
        aten._reshape_alias.default,
        aten._reshape_alias_copy.default,
        aten._reshape_copy.default,
        aten._unsafe_index.Tensor,
        aten.alias_copy.default,
        aten.as_strided_copy.default,
        aten.atleast_1d.Sequence,
        aten.atleast_2d.Sequence,
        aten.atleast_3d.Sequence,
        aten.broadcast_tensors.default,
        aten.channel_shuffle.default,
        aten.diag_embed.default,
        aten.diagonal_copy.default,
        aten.diagonal_scatter.default,
        aten.expand_copy.default,
        aten.im2col.default,
        aten.lift.default,
        aten.lift_fresh.default,
        aten.max_unpool2d.default,
        aten.max_unpool3d.default,
        aten.meshgrid.default,
        aten.meshgrid.indexing,
        aten.narrow_copy.default,
        aten.permute_copy.default,
        aten.reflection_pad3d.default,
        aten.replication_pad3d.default,
        aten.resolve_neg.default,
        aten.rot90.default,
        aten.select_copy.int,
        aten.slice_copy.Tensor,
        aten.split_copy.Tensor,
        aten.split_with_sizes_copy.default,
        aten.squeeze_copy.default,
        aten.squeeze_copy.dim,
        aten.squeeze_copy.dims,
        aten.t_copy.default,
        aten.transpose_copy.int,
        aten.unbind_copy.int,
        aten.unfold_copy.default,
        aten.unsqueeze_copy.default,
        aten.upsample_nearest1d.default,
        aten.upsample_nearest1d.vec,
        aten.upsample_nearest2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest3d.default,
        aten.upsample_nearest3d.vec,
        aten.view_copy.default,
    ],
)
