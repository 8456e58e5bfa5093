"""Samples of operations that work element by element on one tensor, or compare two."""

from __future__ import annotations

import torch

from .base import call, case

aten = torch.ops.aten

_ANYWHERE = [
    aten.abs.default,
    aten.asinh.default,
    aten.atan.default,
    aten.ceil.default,
    aten.celu.default,
    aten.cos.default,
    aten.cosh.default,
    aten.elu.default,
    aten.erf.default,
    aten.erfc.default,
    aten.exp.default,
    aten.exp2.default,
    aten.expm1.default,
    aten.floor.default,
    aten.frac.default,
    aten.gelu.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.isinf.default,
    aten.isnan.default,
    aten.leaky_relu.default,
    aten.log_sigmoid.default,
    aten.logical_not.default,
    aten.mish.default,
    aten.neg.default,
    aten.relu.default,
    aten.relu6.default,
    aten.round.default,
    aten.selu.default,
    aten.sigmoid.default,
    aten.sign.default,
    aten.silu.default,
    aten.sin.default,
    aten.sinh.default,
    aten.softplus.default,
    aten.square.default,
    aten.tan.default,
    aten.tanh.default,
    aten.trunc.default,
]
case(_ANYWHERE, lambda t: call(t(t.n, 5)))
case(_ANYWHERE, lambda t: call(t(2, 3, t.n)), "rank3")
case(aten.gelu.default, lambda t: call(t(t.n, 5), approximate="tanh"), "tanh")
case(aten.leaky_relu.default, lambda t: call(t(t.n, 5), 0.25), "slope")

case([aten.acos.default, aten.asin.default, aten.atanh.default], lambda t: call(t.inside(t.n, 5)))
case(aten.log1p.default, lambda t: call(t.inside(t.n, 5)))
case(aten.acosh.default, lambda t: call(t.above_one(t.n, 5)))
case(
    [aten.log.default, aten.log10.default, aten.log2.default, aten.rsqrt.default, aten.sqrt.default],
    lambda t: call(t.positive(t.n, 5)),
)
case(aten.reciprocal.default, lambda t: call(t.nonzero(t.n, 5)))

case(aten.clamp.default, lambda t: call(t(t.n, 5), -0.25, 0.5))
case(aten.clamp.default, lambda t: call(t(t.n, 5), None, 0.25), "one_sided")
case([aten.clamp_max.default, aten.clamp_min.default], lambda t: call(t(t.n, 5), 0.25))
case([aten.fmod.Scalar, aten.remainder.Scalar], lambda t: call(t(t.n, 5), 0.375))
case(aten.round.decimals, lambda t: call(t(t.n, 5), decimals=0))
case(aten.pow.Scalar, lambda t: call(2.0, t(t.n, 5)))
case(aten.pow.Tensor_Scalar, lambda t: call(t(t.n, 5), 3))
case(aten.pow.Tensor_Scalar, lambda t: call(t.positive(t.n, 5), 0.5), "root")

_BOUNDED = [aten.atan2.default, aten.maximum.default, aten.minimum.default]
case(_BOUNDED, lambda t: call(t(t.n, 5), t.nonzero(t.n, 5)))
case(_BOUNDED, lambda t: call(t(t.n, 5), t.nonzero(5)), "weight", weight=(1,))
case(_BOUNDED, lambda t: call(t(t.n, 5), t.nonzero(t.n, 1)), "two_active", active=(0, 1))
case(_BOUNDED, lambda t: call(t.nonzero(5), t(t.n, 5)), "broadcast", active=(1,))
case(aten.clamp.Tensor, lambda t: call(t(t.n, 5), t(5) - 1, t(5) + 1))
case(aten.clamp.Tensor, lambda t: call(t(t.n, 5), t(5) - 1, t(5) + 1), "weight", weight=(1, 2))
case(aten.clamp.Tensor, lambda t: call(t(t.n, 5), t(t.n, 1)), "two_active", active=(0, 1))
case(aten.heaviside.default, lambda t: call(t(t.n, 5), t(5)))
case(aten.pow.Tensor_Tensor, lambda t: call(t.positive(t.n, 5), t(t.n, 5)))
case(aten.pow.Tensor_Tensor, lambda t: call(t.positive(t.n, 5), t(5)), "weight", weight=(1,))
case(aten.pow.Tensor_Tensor, lambda t: call(t.positive(5), t(t.n, 5)), "exponent", active=(1,))
case(aten.pow.Tensor_Tensor, lambda t: call(t.positive(t.n, 5), t(t.n, 5)), "two_active", active=(0, 1))
case(aten.xlogy.Tensor, lambda t: call(t(t.n, 5), t.positive(t.n, 5)))
case(aten.xlogy.Tensor, lambda t: call(t(t.n, 5), t.positive(5)), "weight", weight=(1,))
case(aten.xlogy.Tensor, lambda t: call(t(t.n, 5), t.positive(t.n, 5)), "two_active", active=(0, 1))
case(aten.prelu.default, lambda t: call(t(t.n, 5), t.nonzero(5)), weight=(1,))
case(aten.prelu.default, lambda t: call(t(t.n, 3, 2), t.nonzero(1)), "one_slope", weight=(1,))

_AGAINST_SCALAR = [
    aten.eq.Scalar,
    aten.ge.Scalar,
    aten.gt.Scalar,
    aten.le.Scalar,
    aten.lt.Scalar,
    aten.ne.Scalar,
]
case(_AGAINST_SCALAR, lambda t: call(t(t.n, 5), 0.25))
_AGAINST_TENSOR = [
    aten.eq.Tensor,
    aten.ge.Tensor,
    aten.gt.Tensor,
    aten.le.Tensor,
    aten.logical_and.default,
    aten.logical_or.default,
    aten.lt.Tensor,
    aten.ne.Tensor,
]
case(_AGAINST_TENSOR, lambda t: call(t(t.n, 5), t(5)))
case(_AGAINST_TENSOR, lambda t: call(t(t.n, 5), t(t.n, 1)), "two_active", active=(0, 1))
case([aten.bitwise_and.Tensor, aten.bitwise_or.Tensor], lambda t: call(t.mask(t.n, 5), t.mask(5)), active=())
case(aten.bitwise_not.default, lambda t: call(t.mask(t.n, 5)), active=())

case(
    [
        aten.all.default,
        aten.any.default,
        aten.argsort.default,
        aten.detach.default,
        aten.empty_like.default,
        aten.ones_like.default,
        aten.rand_like.default,
        aten.randn_like.default,
        aten.zeros_like.default,
    ],
    lambda t: call(t(t.n, 5)),
)
case(aten.bernoulli.default, lambda t: call(t.inside(t.n, 5).abs()))
case([aten.all.dim, aten.any.dim, aten.argmax.default, aten.argmin.default], lambda t: call(t(t.n, 5), 1))
case(aten.any.dims, lambda t: call(t(t.n, 5, 2), [1, 2]))
case(aten.full_like.default, lambda t: call(t(t.n, 5), 2.0))
case(
    [aten.new_empty.default, aten.new_ones.default, aten.new_zeros.default],
    lambda t: call(t(t.n, 5), [t.n, 2]),
)
case(aten.new_full.default, lambda t: call(t(t.n, 5), [t.n, 2], 2.0))

case(
    [
        aten.digamma.default,
        aten.i0.default,
        aten.lgamma.default,
        aten.special_erfcx.default,
        aten.special_i0e.default,
    ],
    lambda t: call(t.positive(t.n, 5)),
)
case(aten.erfinv.default, lambda t: call(t.inside(t.n, 5)))
case(aten.logit.default, lambda t: call(t.inside(t.n, 5).abs() / 2 + 0.25))
case([aten.nan_to_num.default, aten.sgn.default, aten.sinc.default], lambda t: call(t(t.n, 5)))
case([aten.hardshrink.default, aten.softshrink.default], lambda t: call(t(t.n, 5), 0.375))
case(aten.threshold.default, lambda t: call(t(t.n, 5), 0.375, 0.0))
_ROUNDED = [aten.floor_divide.default, aten.fmod.Tensor, aten.remainder.Tensor]
case(_ROUNDED, lambda t: call(t(t.n, 5), t.positive(5)))
case(aten.div.Tensor_mode, lambda t: call(t(t.n, 5), t.positive(5), rounding_mode="floor"))
case(aten.div.Scalar_mode, lambda t: call(t(t.n, 5), 0.5, rounding_mode="trunc"))
_OF_TWO = [aten.fmax.default, aten.fmin.default, aten.hypot.default, aten.logaddexp.default, aten.logaddexp2.default]
case(_OF_TWO, lambda t: call(t(t.n, 5), t.nonzero(5)))
case(_OF_TWO, lambda t: call(t.nonzero(t.n, 5), t.nonzero(t.n, 5)), "two_active", active=(0, 1))
case([aten.isneginf.default, aten.isposinf.default], lambda t: call(t(t.n, 5)))
case([aten.bitwise_xor.Tensor, aten.logical_xor.default], lambda t: call(t.mask(t.n, 5), t.mask(5)), active=())
case(aten.bernoulli.p, lambda t: call(t.inside(t.n, 5).abs(), 0.5))
case(aten.bernoulli.Tensor, lambda t: call(t.inside(t.n, 5).abs(), t.inside(t.n, 5).abs()))
case(
    [aten.count_nonzero.default, aten.detach_copy.default, aten.exponential.default, aten.histc.default],
    lambda t: call(t(t.n, 5)),
)
case([aten.nonzero.default, aten.uniform.default], lambda t: call(t(t.n, 5)))
case(aten.poisson.default, lambda t: call(t.positive(t.n, 5)))
case(aten.multinomial.default, lambda t: call(t.positive(2, 5), 1), empty=False)
case(aten.bucketize.Tensor, lambda t: call(t(t.n, 5), torch.arange(3).to(t.dtype)))
