"""Contractions: the output is linear in each tensor operand on its own.

With one active operand this is the LFP rule of a layer: the true vector-Jacobian product to the active operand and
to the weights. Where k operands are active (attention scores), each takes one k-th, so that reward is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import CONTRACTION, Call, Signals, rule

aten = torch.ops.aten


# Of x [n, c, ...] with weights [o, c, ...]; `convolution` may be a transposed one, by an argument.
CHANNEL_CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.convolution.default,
)
CONVOLUTIONS = (
    *CHANNEL_CONVOLUTIONS,
    aten.conv_tbc.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
DENSE = (
    aten.addbmm.default,
    aten.addmm.default,
    aten.addmv.default,
    aten.baddbmm.default,
    aten.bmm.default,
    aten.einsum.default,
    aten.linear.default,
    aten.matmul.default,
    aten.mm.default,
    aten.mv.default,
)
# Position, among an operation's tensor arguments, of what is added to the product rather than multiplied.
ADDEND = dict.fromkeys(CONVOLUTIONS, 2) | {
    aten.addbmm.default: 0,
    aten.addmm.default: 0,
    aten.addmv.default: 0,
    aten.baddbmm.default: 0,
    aten.bilinear.default: 3,
    aten.linear.default: 2,
}


@rule(
    *CONVOLUTIONS,
    *DENSE,
    aten._embedding_bag.default,
    aten.bilinear.default,
    aten.dot.default,
    aten.embedding.default,
    aten.linalg_cross.default,
    aten.outer.default,
    aten.vdot.default,
    "aten::_grouped_mm",  # expert layers: each row of x meets the matrix of its expert
    "transformers::grouped_mm_fallback",
    family=CONTRACTION,
)
def contraction(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of z = x @ w + b and its relatives: the vjp, shared evenly among the active factors."""
    signals = call.vjp(s)
    addend = ADDEND.get(call.op)
    factor = [active and i != addend for i, active in enumerate(call.active)]
    share = sum(factor)
    if share < 2:
        return signals
    return [g / share if shares and g is not None else g for g, shares in zip(signals, factor)]
