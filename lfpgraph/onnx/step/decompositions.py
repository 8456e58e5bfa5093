"""ATen's fused kernels and their backward forms, written once in operations that ONNX has: the table for make_fx.

Each function has the signature of the kernel it stands for and works on tensors of any backend. The registry's translators
come first: what they know is not taken apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, get_decompositions

from ... import kernels
from ..registry import DECOMPOSITIONS, TRANSLATORS
from . import decompositions_attention, decompositions_norms, decompositions_windows  # noqa: F401  (they fill the table)

__all__ = ["decomposition_table"]

aten = torch.ops.aten
# Norms and poolings that torch can take apart, but does not among its core decompositions.
_FURTHER = [
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_functional,
    aten._native_batch_norm_legit_no_training,
    aten.max_pool2d_with_indices_backward,
    aten.native_batch_norm,
]


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Decompositions for make_fx: ours, those of our own operations, then torch's for what no translator takes."""
    torchs = {**core_aten_decompositions(), **get_decompositions(_FURTHER)}
    table = {op: how for op, how in torchs.items() if op not in TRANSLATORS}
    return {**table, **kernels.DECOMPOSITIONS, **DECOMPOSITIONS}
