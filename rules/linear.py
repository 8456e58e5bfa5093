"""Contractions: the output is linear in each tensor operand on its own.

With one active operand this is the LFP rule of a layer: the true vector-Jacobian product to the active operand and
to the weights. Where k operands are active (attention scores), each takes one k-th, so that reward is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import CONTRACTION, rows

aten = torch.ops.aten


def contraction(node: Any, s: Tensor, *args: Any, **kwargs: Any) -> list[Tensor | None]:
    """Signals of z = x @ w and its relatives: the vjp, shared evenly among the active operands."""
    signals = node.vjp(s)
    share = sum(node.active)
    if share < 2:
        return signals
    return [g / share if active and g is not None else g for g, active in zip(signals, node.active)]


rows(
    CONTRACTION,
    contraction,
    [
        aten.addmm.default,
        aten.addmv.default,
        aten.baddbmm.default,
        aten.bilinear.default,
        aten.bmm.default,
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
        aten.convolution.default,
        aten.dot.default,
        aten.einsum.default,
        aten.embedding.default,
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.mv.default,
    ],
)
