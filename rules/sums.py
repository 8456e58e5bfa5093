"""Sums, products and quotients of whole tensors, element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import CAST, CHOICE, PRODUCT, QUOTIENT, SPLIT, Call, Signals, rule

from .activations import identity
from .linear import contraction
from .views import vjp

aten = torch.ops.aten


@rule(aten.div.Scalar, aten.div.Tensor, family=QUOTIENT)
def quotient(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of z = x / y: an active numerator takes all; with another one, z is a function of an active y."""
    if len(call.active) == 2 and call.active[1]:
        if call.active[0]:
            return [call.vjp(s)[0], None]
        to_divisor = identity(call, s, call.inputs[1:], call.active[1:])
        return [call.vjp(s)[0] if call.weightlike[0] else None, *to_divisor]
    if call.active == (True,) and not isinstance(args[0], Tensor):
        return identity(call, s, call.inputs, call.active)
    return call.vjp(s)


rule(
    aten.add.Scalar,
    aten.add.Tensor,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.sub.Scalar,
    aten.sub.Tensor,
    family=SPLIT,
)(vjp)
rule(
    aten.mul.Scalar,
    aten.mul.Tensor,
    aten.neg.default,
    family=PRODUCT,
)(contraction)
rule(
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.self,
    family=CHOICE,
)(vjp)
rule(
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    family=CAST,
)(vjp)
