"""Normalisations: the true vjp, statistics included, with epsilon on the output (as lfprop trains)."""

from __future__ import annotations

import torch

from lfpgraph.registry import NORMALISATION, rule

from .views import vjp

__all__ = ["MEANS", "ROOTS", "SPREADS"]

aten = torch.ops.aten

# The operations that a normalisation is written out with, by what they do there.
MEANS = frozenset({aten.mean.dim, aten.sum.dim_IntList})
SPREADS = frozenset({aten.linalg_vector_norm.default, aten.std.correction, aten.var.correction, aten.var.dim})
ROOTS = frozenset({aten.pow.Tensor_Scalar, aten.reciprocal.default, aten.rsqrt.default, aten.sqrt.default})

rule(
    aten._batch_norm_no_update.default,
    aten._batch_norm_with_update_functional.default,
    aten._fused_rms_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.batch_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
    aten.layer_norm.default,
    aten.native_batch_norm.default,
    aten.native_group_norm.default,
    aten.native_layer_norm.default,
    aten.rms_norm.default,
    family=NORMALISATION,
)(vjp)
