"""Copies and rarer views: every output entry is one input entry, or a constant (the true vjp)."""

from __future__ import annotations

import torch

from lfpgraph.registry import VIEW, rows

from .views import vjp

aten = torch.ops.aten

rows(
    VIEW,
    vjp,
    [
        aten._reshape_alias.default,
        aten._unsafe_index.Tensor,
        aten.alias_copy.default,
        aten.as_strided_copy.default,
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
