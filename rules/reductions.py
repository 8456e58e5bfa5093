"""Sums over a dimension, means, average pools and interpolations: additions of many terms with fixed weights."""

from __future__ import annotations

import torch

from lfpgraph.registry import POOLING, REDUCTION, SOFTMAX, rule

from .views import vjp

aten = torch.ops.aten

rule(
    aten.col2im.default,
    aten.cumsum.default,
    aten.index_add.default,
    aten.mean.default,
    aten.mean.dim,
    aten.nansum.default,
    aten.scatter_add.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.trace.default,
    family=REDUCTION,
)(vjp)
rule(
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.vec,
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bilinear2d_aa.vec,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.upsample_bicubic2d.default,
    aten.upsample_bicubic2d.vec,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_linear1d.default,
    aten.upsample_linear1d.vec,
    aten.upsample_trilinear3d.default,
    aten.upsample_trilinear3d.vec,
    family=POOLING,
)(vjp)
rule(
    aten._log_softmax.default,
    aten._safe_softmax.default,
    aten._softmax.default,
    aten.log_softmax.int,
    aten.softmax.int,
    family=SOFTMAX,
)(vjp)
