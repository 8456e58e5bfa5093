"""Samples of statistics, transforms, losses and rarer contractions."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Maker, call, case

aten = torch.ops.aten


def _wide(x: Tensor) -> Tensor:
    """The same numbers in float32 where they are bfloat16: torch has no complex numbers of that precision."""
    return x.float() if x.dtype == torch.bfloat16 else x


case(
    aten._weight_norm_interface.default,
    lambda t: call(t.nonzero(4, 3), t.positive(4, 1)),
    weight=(1,),
    empty=False,
    strided=False,
)
case([aten.cumprod.default, aten.logcumsumexp.default], lambda t: call(t.nonzero(t.n, 5), 1))
case(aten.dist.default, lambda t: call(t(t.n, 5), t.nonzero(t.n, 5)), active=(0, 1), empty=False)
case(aten.nansum.default, lambda t: call(t(t.n, 5), [1]))
case(aten.norm.Scalar, lambda t: call(t(t.n, 5), 2), empty=False)
case(aten.norm.ScalarOpt_dim, lambda t: call(t(t.n, 5), 2, [1]))
case(aten.prod.default, lambda t: call(t.nonzero(t.n, 2)), empty=False)
case(aten.renorm.default, lambda t: call(t.nonzero(t.n, 5), 2, 0, 1.0), empty=False)
case([aten.std_mean.correction, aten.var_mean.correction], lambda t: call(t(t.n, 5), [1], correction=0), empty=False)
case(aten.trace.default, lambda t: call(t(3, 3)), empty=False)

case(
    aten.grid_sampler_2d.default,
    lambda t: call(t(t.n, 1, 3, 3), t.inside(t.n, 2, 2, 2), 0, 0, False),
    active=(0, 1),
    empty=False,
)
case(
    aten.grid_sampler_3d.default,
    lambda t: call(t(t.n, 1, 2, 2, 2), t.inside(t.n, 1, 2, 2, 3), 0, 0, False),
    active=(0, 1),
    empty=False,
)


def _complex(t: Maker, *shape: int) -> Tensor:
    return torch.complex(_wide(t(*shape)), _wide(t(*shape)))


case(aten._fft_r2c.default, lambda t: call(_wide(t(t.n, 4)), [1], 0, True), empty=False)
case(aten._fft_c2r.default, lambda t: call(_complex(t, t.n, 3), [1], 0, 4), empty=False, strided=False)
case(aten._fft_c2c.default, lambda t: call(_complex(t, t.n, 3), [1], 0, True), empty=False, strided=False)
_OF_COMPLEX = [
    aten._conj.default,
    aten._conj_physical.default,
    aten.imag.default,
    aten.real.default,
    aten.resolve_conj.default,
    aten.view_as_real.default,
]
case(aten.polar.default, lambda t: call(_wide(t.positive(t.n, 3)), _wide(t(t.n, 3))), active=(0, 1))
case(_OF_COMPLEX, lambda t: call(_complex(t, t.n, 3)), strided=False)
case(aten.complex.default, lambda t: call(_wide(t(t.n, 3)), _wide(t(t.n, 3))), active=(0, 1))
case(aten.view_as_complex.default, lambda t: call(_wide(t(t.n, 3, 2))), strided=False)

_REGRESSION = [aten.huber_loss.default, aten.mse_loss.default, aten.smooth_l1_loss.default]
case(_REGRESSION, lambda t: call(t(t.n, 3), t.nonzero(t.n, 3)), active=(0, 1), empty=False)
case(_REGRESSION, lambda t: call(t(t.n, 3), t.nonzero(t.n, 3), 0), "each")
case(aten.soft_margin_loss.default, lambda t: call(t(t.n, 3), t.nonzero(t.n, 3).sign()), empty=False)
case(
    aten.binary_cross_entropy.default,
    lambda t: call(t.inside(t.n, 3).abs() / 2 + 0.25, t.inside(t.n, 3).abs()),
    empty=False,
)
case(aten.binary_cross_entropy_with_logits.default, lambda t: call(t(t.n, 3), t.inside(t.n, 3).abs()), empty=False)
case(aten.nll_loss_forward.default, lambda t: call(t(t.n, 3), t.index(3, t.n), None, 1, -100), empty=False)
case(aten.nll_loss_nd.default, lambda t: call(t(t.n, 3), t.index(3, t.n)), empty=False)
case(
    aten.nll_loss2d_forward.default, lambda t: call(t(t.n, 3, 2, 2), t.index(3, t.n, 2, 2), None, 1, -100), empty=False
)

case(
    aten.addbmm.default,
    lambda t: call(t(2, 4), t(t.n, 2, 3), t(t.n, 3, 4)),
    active=(1,),
    weight=(2,),
    bias=(0,),
    empty=False,
)
case(aten.conv_tbc.default, lambda t: call(t(4, t.n, 2), t(2, 2, 3), t(3)), weight=(1,), bias=(2,), empty=False)
case(aten.linalg_cross.default, lambda t: call(t(t.n, 3), t.nonzero(t.n, 3)), active=(0, 1))
case(aten.vdot.default, lambda t: call(t(3), t(3)), active=(0, 1), empty=False)
case(
    aten._embedding_bag.default,
    lambda t: call(t(5, 3), t.index(5, 4), torch.tensor([0, 2])),
    active=(),
    weight=(0,),
    empty=False,
)
case(
    aten._batch_norm_no_update.default,
    lambda t: call(t(4, 3), t.nonzero(3), t(3), t(3), t.positive(3), 0.1, 1e-5),
    weight=(1,),
    bias=(2,),
    empty=False,
)
case(
    aten._batch_norm_with_update_functional.default,
    lambda t: call(t(4, 3), t.nonzero(3), t(3), t(3), t.positive(3), 0.1, 1e-5),
    weight=(1,),
    bias=(2,),
    empty=False,
)
case(
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    lambda t: call(t.inside(2, 1, 3, 2), t.inside(2, 1, 3, 2), t.inside(2, 1, 3, 2)),
    active=(0, 1, 2),
    empty=False,
)
