"""Samples of selections and scatters."""

from __future__ import annotations

import torch

from .base import call, case

aten = torch.ops.aten
_CORNERS = torch.tensor([[0, 2], [8, 10]])

case(
    aten._unsafe_index_put.default,
    lambda t: call(t(t.n, 5), [None, torch.tensor([3, 1])], t(t.n, 2)),
    active=(0, 2),
)
case(aten.adaptive_max_pool3d.default, lambda t: call(t(t.n, 1, 2, 2, 4), [1, 2, 2]), empty=False)
case(aten.aminmax.default, lambda t: call(t(t.n, 5), dim=1))
case([aten.cummax.default, aten.cummin.default], lambda t: call(t(t.n, 5), 1))
case(
    aten.fractional_max_pool2d.default,
    lambda t: call(t(2, 1, 4, 4), [2, 2], [2, 2], t.inside(2, 1, 2).abs()),
    empty=False,
)
case(aten.index_copy.default, lambda t: call(t(t.n, 5), 1, torch.tensor([3, 1]), t(t.n, 2)), active=(0, 2))
case(aten.index_fill.int_Scalar, lambda t: call(t(t.n, 5), 1, torch.tensor([3, 1]), 0.5))
case(aten.index_fill.int_Tensor, lambda t: call(t(t.n, 5), 1, torch.tensor([3, 1]), t()), active=(0, 2))
case(aten.fill.Scalar, lambda t: call(t(t.n, 5), 0.5))
case(aten.fill.Tensor, lambda t: call(t(t.n, 5), t()), active=(0, 1))
case(aten.kthvalue.default, lambda t: call(t(t.n, 5), 2, 1))
case([aten.median.default, aten.nanmedian.default], lambda t: call(t(t.n, 5)), empty=False)
case([aten.mode.default, aten.nanmedian.dim], lambda t: call(t(t.n, 5), 1))
case(aten.put.default, lambda t: call(t(2, 5), torch.tensor([7, 1]), t(2)), active=(0, 2), empty=False)
case(aten.scatter_reduce.two, lambda t: call(t(t.n, 3), 1, t.index(3, t.n, 4), t(t.n, 4), "amax"), active=(0, 2))
case(aten.scatter_reduce.two, lambda t: call(t(t.n, 3), 1, t.index(3, t.n, 4), t(t.n, 4), "sum"), "sum", active=(0, 2))
case(aten.sort.stable, lambda t: call(t(t.n, 5), stable=True, dim=1))
case(
    aten.max_pool2d_with_indices_backward.default,
    lambda t: call(
        t(t.n, 1, 2, 2), t(t.n, 1, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False, _CORNERS.expand(t.n, 1, 2, 2)
    ),
    empty=False,
)
case(aten.take.default, lambda t: call(t(2, 5), t.index(10, 4)), empty=False)
