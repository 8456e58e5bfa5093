"""Scaled dot-product attention kept whole: the same signals as when it is written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import ATTENTION, rule

aten = torch.ops.aten


@rule(
    aten.scaled_dot_product_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    family=ATTENTION,
    override=False,
)
def attention(node: Any, s: Tensor, *args: Any, **kwargs: Any) -> list[Tensor | None]:
    """Signals of softmax(q k^T + m) v, as if written out: v takes half, q and k a quarter each.

    Each of the two matrix products shares between its active operands; a product with only one active operand gives
    it (and its weight-like partner) everything. An additive mask that carries reward receives what the scores do.
    """
    active = node.active
    value_share = 0.5 if active[2] and (active[0] or active[1]) else 1.0
    scores_share = value_share if active[2] else 1.0
    query_share = 0.5 if active[0] and active[1] else 1.0
    shares = [scores_share * query_share] * 2 + [value_share, scores_share]
    return [None if g is None else g * share for g, share in zip(node.vjp(s), shares)]
