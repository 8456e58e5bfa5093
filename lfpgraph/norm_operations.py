"""The operations that a normalisation is written out with, by what they do there."""

from __future__ import annotations

import torch

__all__ = ["MEANS", "ROOTS", "SPREADS"]

aten = torch.ops.aten
MEANS = frozenset({aten.mean.dim, aten.sum.dim_IntList})
SPREADS = frozenset(
    {
        aten.linalg_vector_norm.default,
        aten.std.correction,
        aten.var.correction,
        aten.var.dim,
    }  # norm, deviation, variance
)
ROOTS = frozenset({aten.pow.Tensor_Scalar, aten.reciprocal.default, aten.rsqrt.default, aten.sqrt.default})
