"""Sums, products and quotients of whole tensors, element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import CAST, CHOICE, PRODUCT, QUOTIENT, SPLIT, rows

from .activations import identity
from .linear import contraction
from .views import vjp

aten = torch.ops.aten


def quotient(node: Any, s: Tensor, *args: Any, **kwargs: Any) -> list[Tensor | None]:
    """Signals of z = x / y: an active numerator takes all; with another one, z is a function of an active y."""
    if len(node.active) == 2 and node.active[1]:
        if node.active[0]:
            return [node.vjp(s)[0], None]
        to_divisor = identity(node, s, node.inputs[1:], node.active[1:])
        return [node.vjp(s)[0] if node.weightlike[0] else None, *to_divisor]
    if node.active == (True,) and not isinstance(args[0], Tensor):
        return identity(node, s, node.inputs, node.active)
    return node.vjp(s)


rows(
    SPLIT,
    vjp,
    [
        aten.add.Scalar,
        aten.add.Tensor,
        aten.rsub.Scalar,
        aten.rsub.Tensor,
        aten.sub.Scalar,
        aten.sub.Tensor,
    ],
)
rows(
    PRODUCT,
    contraction,
    [
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.neg.default,
    ],
)
rows(
    QUOTIENT,
    quotient,
    [
        aten.div.Scalar,
        aten.div.Tensor,
    ],
)
rows(
    CHOICE,
    vjp,
    [
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        aten.where.Scalar,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.where.self,
    ],
)
rows(
    CAST,
    vjp,
    [
        aten._to_copy.default,
        aten.to.dtype,
        aten.to.dtype_layout,
    ],
)
