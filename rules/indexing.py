"""Selections: the entries that the operation picks, by index, order or mask, take the reward (the true vjp)."""

from __future__ import annotations

import torch

from lfpgraph.registry import SELECTION, rule

from .views import vjp

aten = torch.ops.aten

rule(
    aten._unsafe_index_put.default,
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.amax.default,
    aten.amin.default,
    aten.aminmax.default,
    aten.cummax.default,
    aten.cummin.default,
    aten.fill.Scalar,
    aten.fill.Tensor,
    aten.fractional_max_pool2d.default,
    aten.fractional_max_pool3d.default,
    aten.gather.default,
    aten.index.Tensor,
    aten.index_copy.default,
    aten.index_fill.int_Scalar,
    aten.index_fill.int_Tensor,
    aten.index_put.default,
    aten.index_select.default,
    aten.kthvalue.default,
    aten.masked_scatter.default,
    aten.masked_select.default,
    aten.max.default,
    aten.max.dim,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default,
    aten.max_pool3d.default,
    aten.max_pool3d_with_indices.default,
    aten.median.default,
    aten.median.dim,
    aten.min.default,
    aten.min.dim,
    aten.mode.default,
    aten.nanmedian.default,
    aten.nanmedian.dim,
    aten.put.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.sort.default,
    aten.sort.stable,
    aten.take.default,
    aten.take_along_dim.default,
    aten.topk.default,
    family=SELECTION,
)(vjp)
