"""Samples of sums, products, quotients, choices, casts, reductions, pools, softmax and statistics."""

from __future__ import annotations

import torch

from .base import Maker, call, case

aten = torch.ops.aten

_SCALAR = [aten.add.Scalar, aten.div.Scalar, aten.mul.Scalar, aten.rsub.Scalar, aten.sub.Scalar]
case(_SCALAR, lambda t: call(t(t.n, 5), 1.5))
_BINARY = [aten.add.Tensor, aten.div.Tensor, aten.mul.Tensor, aten.rsub.Tensor, aten.sub.Tensor]
case(_BINARY, lambda t: call(t(t.n, 5), t.nonzero(t.n, 5)), active=(0, 1))
case(_BINARY, lambda t: call(t(t.n, 5), t.nonzero(5)), "constant")
case(_BINARY, lambda t: call(t(5), t.nonzero(t.n, 5)), "constant_first", active=(1,))
case(_BINARY, lambda t: call(t(t.n, 5), t.nonzero(5)), "weight", weight=(1,))
case(_BINARY, lambda t: call(t(5), t.nonzero(t.n, 5)), "weight_first", active=(1,), weight=(0,))
case(_BINARY, lambda t: call(t(t.n, 1, 3), t.nonzero(4, 1)), "broadcast", active=(0, 1))
case(
    [aten.add.Tensor, aten.rsub.Tensor, aten.sub.Tensor],
    lambda t: call(t(t.n, 5), t(t.n, 5), alpha=0.5),
    "alpha",
    active=(0, 1),
)

case(aten.masked_fill.Scalar, lambda t: call(t(t.n, 5), t.mask(t.n, 5), 2.0))
case(aten.masked_fill.Tensor, lambda t: call(t(t.n, 5), t.mask(5), t()))
case(
    aten.masked_fill.Tensor,
    lambda t: call(t(t.n, 5), t.mask(t.n, 5), t.positive()),
    "two_active",
    active=(0, 2),
)
case(aten.where.self, lambda t: call(t.mask(t.n, 5), t(t.n, 5), t(t.n, 5)), active=(1, 2))
case(aten.where.self, lambda t: call(t.mask(5), t(t.n, 5), t(t.n, 1)), "broadcast", active=(1, 2))
case(aten.where.self, lambda t: call(t.mask(t.n, 5), t(t.n, 5), t(5)), "weight", active=(1,), weight=(2,))
case(aten.where.Scalar, lambda t: call(t.mask(t.n, 5), 1.0, 0.0), active=())
case(aten.where.ScalarOther, lambda t: call(t.mask(t.n, 5), t(t.n, 5), 2.0), active=(1,))
case(aten.where.ScalarSelf, lambda t: call(t.mask(t.n, 5), 2.0, t(t.n, 5)), active=(1,))


def _other(t: Maker) -> torch.dtype:
    return torch.float32 if t.dtype == torch.float64 else torch.float64


case(aten._to_copy.default, lambda t: call(t(t.n, 5), dtype=_other(t)))
case(aten.to.dtype, lambda t: call(t(t.n, 5), _other(t)))
case(
    aten.to.dtype_layout,
    lambda t: call(t(t.n, 5), dtype=_other(t), layout=torch.strided, device=torch.device("cpu")),
)

case(aten.sum.default, lambda t: call(t(t.n, 5)))
case(aten.mean.default, lambda t: call(t(t.n, 5)), empty=False)  # the mean of nothing is NaN
case([aten.sum.dim_IntList, aten.mean.dim], lambda t: call(t(t.n, 5), [1]))
case([aten.sum.dim_IntList, aten.mean.dim], lambda t: call(t(t.n, 3, 2), [-1, 1], True), "keepdim")
case(aten.cumsum.default, lambda t: call(t(t.n, 5), 1))
case(aten.index_add.default, lambda t: call(t(t.n, 3), 1, t.index(3, 4), t(t.n, 4)), active=(0, 2))
case(
    aten.index_add.default,
    lambda t: call(t(t.n, 3), 1, t.index(3, 4), t(t.n, 4), alpha=2.0),
    "constant",
    active=(2,),
)
case(aten.scatter_add.default, lambda t: call(t(t.n, 3), 1, t.index(3, t.n, 4), t(t.n, 4)), active=(0, 2))
case(
    aten.scatter_add.default,
    lambda t: call(t(t.n, 3), 1, t.index(3, t.n, 4), t(t.n, 4)),
    "constant",
    active=(2,),
)

case(
    [aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default],
    lambda t: call(t(t.n, 2, 3, 3), [2, 2]),
)
case(aten.adaptive_avg_pool1d.default, lambda t: call(t(t.n, 2, 5), [2]))
case(
    [aten._adaptive_avg_pool3d.default, aten.adaptive_avg_pool3d.default], lambda t: call(t(t.n, 2, 2, 2, 3), [1, 2, 2])
)
case(aten.avg_pool1d.default, lambda t: call(t(t.n, 2, 5), [2]))
case(aten.avg_pool1d.default, lambda t: call(t(t.n, 2, 5), [3], [2], [1]), "padding")
case(aten.avg_pool2d.default, lambda t: call(t(t.n, 2, 3, 3), [2, 2], [1, 1]))
case(aten.avg_pool2d.default, lambda t: call(t(t.n, 1, 4, 4), [2, 2], [2, 2], [1, 1], False, False), "padding")
case(aten.avg_pool3d.default, lambda t: call(t(t.n, 1, 2, 2, 3), [2, 2, 2]))

case([aten._log_softmax.default, aten._softmax.default], lambda t: call(t(t.n, 5), -1, False))
case([aten._safe_softmax.default, aten.log_softmax.int, aten.softmax.int], lambda t: call(t(t.n, 5), -1))
case([aten.log_softmax.int, aten.softmax.int], lambda t: call(t(t.n, 3, 2), 1), "middle")

case(aten.linalg_vector_norm.default, lambda t: call(t(t.n, 5), 2, [1], True))
case(aten.logsumexp.default, lambda t: call(t(t.n, 5), [1]))
case(aten.prod.dim_int, lambda t: call(t(t.n, 5), 1))
case(aten.prod.dim_int, lambda t: call(t.nonzero(t.n, 5), 1), "nonzero")
# torch warns about variances of an empty batch.
case(
    [aten.std.correction, aten.var.correction],
    lambda t: call(t(t.n, 5), [1], correction=0, keepdim=True),
    empty=False,
)
case(aten.var.dim, lambda t: call(t(t.n, 5), [1], False, True), empty=False)
