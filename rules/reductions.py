"""Sums over a dimension, means and average pools: additions of many terms."""

from __future__ import annotations

import torch

from lfpgraph.registry import GENERAL, POOLING, REDUCTION, SOFTMAX, rows

from .views import vjp

aten = torch.ops.aten

rows(
    REDUCTION,
    vjp,
    [
        aten.cumsum.default,
        aten.index_add.default,
        aten.mean.default,
        aten.mean.dim,
        aten.scatter_add.default,
        aten.sum.default,
        aten.sum.dim_IntList,
    ],
)
rows(
    POOLING,
    vjp,
    [
        aten._adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool3d.default,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
    ],
)
rows(
    SOFTMAX,
    vjp,
    [
        aten._log_softmax.default,
        aten._safe_softmax.default,
        aten._softmax.default,
        aten.log_softmax.int,
        aten.softmax.int,
    ],
)
rows(
    GENERAL,
    vjp,
    [
        aten.linalg_vector_norm.default,
        aten.logsumexp.default,
        aten.prod.dim_int,
        aten.std.correction,
        aten.var.correction,
        aten.var.dim,
    ],
    source="this project: a statistic of an activation, true vjp",
)
