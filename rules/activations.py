"""Activations: z = f(x) element by element hands its reward on unchanged, `s_x = s_z * f(x) / x`.

No derivative of f is taken, so step functions are as good as smooth ones (LFP section 3). Comparisons, and operations that
pass no reward at all, are here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfpgraph.numerics import identity_signal
from lfpgraph.registry import ACTIVATION, COMPARISON, NOTHING, RECTIFIER, Call, Signals, rule

from .views import nothing, vjp

aten = torch.ops.aten


def identity(call: Call, s: Tensor, inputs: Sequence[Tensor], active: Sequence[bool]) -> Signals:
    """The identity rule towards the one active input; the signals are in stabilized form."""
    call.stabilized = True
    return [
        identity_signal(s, x, call.output, call.epsilon) if is_active else None for x, is_active in zip(inputs, active)
    ]


def activation(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of z = f(x, ...): identity rule for one active x, true vjp for parameters and for several active ones."""
    if sum(call.active) != 1:
        return call.vjp(s)
    signals = identity(call, s, call.inputs, call.active)
    if any(call.weightlike):
        signals = [g if a else v for g, v, a in zip(signals, call.vjp(s), call.active)]
    return signals


def choice(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """Signals of a mask of what was chosen: as of an activation, but none where an infinite entry leaves a score out."""
    call.output = call.output.masked_fill(call.output.isinf(), 0.0)
    return activation(call, s, *args, **kwargs)


@rule(aten.exp.default, aten.exp2.default, family=ACTIVATION)
def exponential(call: Call, s: Tensor, x: Tensor) -> Signals:
    """Signal of z = exp(x): the identity rule, but none where x is exactly 0.

    There it is the maximum less itself (a softmax written out, a running maximum) or a decay over no time: z is 1 whatever
    the two were. To hand `r / epsilon` to the one and minus that to the other would bury the relevance of all the rest
    under their rounding. This project.
    """
    return activation(call, torch.where(x == 0, torch.zeros_like(s), s), x)


rule(
    aten.abs.default,
    aten.acos.default,
    aten.acosh.default,
    aten.asin.default,
    aten.asinh.default,
    aten.atan.default,
    aten.atan2.default,
    aten.atanh.default,
    aten.ceil.default,
    aten.celu.default,
    aten.clamp.Tensor,
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.copysign.Scalar,
    aten.copysign.Tensor,
    aten.cos.default,
    aten.cosh.default,
    aten.digamma.default,
    aten.div.Scalar_mode,
    aten.div.Tensor_mode,
    aten.elu.default,
    aten.erf.default,
    aten.erfc.default,
    aten.erfinv.default,
    aten.expm1.default,
    aten.fake_quantize_per_channel_affine.default,
    aten.fake_quantize_per_tensor_affine.default,
    aten.fake_quantize_per_tensor_affine.tensor_qparams,
    aten.floor.default,
    aten.floor_divide.default,
    aten.fmax.default,
    aten.fmin.default,
    aten.fmod.Scalar,
    aten.fmod.Tensor,
    aten.frac.default,
    aten.gelu.default,
    aten.hardshrink.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.heaviside.default,
    aten.hypot.default,
    aten.i0.default,
    aten.igamma.default,
    aten.igammac.default,
    aten.ldexp.Tensor,
    aten.lgamma.default,
    aten.log.default,
    aten.log10.default,
    aten.log1p.default,
    aten.log2.default,
    aten.log_sigmoid.default,
    aten.logaddexp.default,
    aten.logaddexp2.default,
    aten.logit.default,
    aten.maximum.default,
    aten.minimum.default,
    aten.mish.default,
    aten.nan_to_num.default,
    aten.nextafter.default,
    aten.polygamma.default,
    aten.pow.Scalar,
    aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor,
    aten.reciprocal.default,
    aten.relu6.default,
    aten.remainder.Scalar,
    aten.remainder.Scalar_Tensor,
    aten.remainder.Tensor,
    aten.round.decimals,
    aten.round.default,
    aten.rsqrt.default,
    aten.selu.default,
    aten.sgn.default,
    aten.sigmoid.default,
    aten.sign.default,
    aten.silu.default,
    aten.sin.default,
    aten.sinc.default,
    aten.sinh.default,
    aten.softplus.default,
    aten.softshrink.default,
    aten.special_airy_ai.default,
    aten.special_bessel_j0.default,
    aten.special_bessel_j1.default,
    aten.special_bessel_y0.default,
    aten.special_bessel_y1.default,
    aten.special_chebyshev_polynomial_t.n_scalar,
    aten.special_chebyshev_polynomial_u.n_scalar,
    aten.special_entr.default,
    aten.special_erfcx.default,
    aten.special_hermite_polynomial_h.n_scalar,
    aten.special_hermite_polynomial_he.n_scalar,
    aten.special_i0e.default,
    aten.special_i1.default,
    aten.special_i1e.default,
    aten.special_laguerre_polynomial_l.n_scalar,
    aten.special_legendre_polynomial_p.n_scalar,
    aten.special_log_ndtr.default,
    aten.special_modified_bessel_i0.default,
    aten.special_modified_bessel_i1.default,
    aten.special_modified_bessel_k0.default,
    aten.special_modified_bessel_k1.default,
    aten.special_ndtr.default,
    aten.special_ndtri.default,
    aten.special_spherical_bessel_j0.default,
    aten.special_xlog1py.default,
    aten.special_zeta.default,
    aten.special_zeta.other_scalar,
    aten.special_zeta.self_scalar,
    aten.sqrt.default,
    aten.square.default,
    aten.tan.default,
    aten.tanh.default,
    aten.threshold.default,
    aten.trunc.default,
    aten.xlogy.Scalar_Other,
    aten.xlogy.Scalar_Self,
    aten.xlogy.Tensor,
    family=ACTIVATION,
)(activation)
# Linear on each side of zero, so that f(x) / x is the slope.
rule(
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.relu.default,
    family=RECTIFIER,
)(vjp)
# Alone they pass nothing; a run that leads through one and back to floats is an activation of its own (`graph.regions`).
rule(
    aten.bitwise_and.Tensor,
    aten.bitwise_not.default,
    aten.bitwise_or.Tensor,
    aten.bitwise_xor.Tensor,
    aten.eq.Scalar,
    aten.eq.Tensor,
    aten.ge.Scalar,
    aten.ge.Tensor,
    aten.gt.Scalar,
    aten.gt.Tensor,
    aten.isinf.default,
    aten.isnan.default,
    aten.isneginf.default,
    aten.isposinf.default,
    aten.le.Scalar,
    aten.le.Tensor,
    aten.logical_and.default,
    aten.logical_not.default,
    aten.logical_or.default,
    aten.logical_xor.default,
    aten.lt.Scalar,
    aten.lt.Tensor,
    aten.ne.Scalar,
    aten.ne.Tensor,
    aten.signbit.default,
    family=COMPARISON,
    needs_vjp=False,
)(nothing)
# Places, counts, draws and new tensors: the result is no function of the argument that reward could go back through.
rule(
    aten.all.default,
    aten.all.dim,
    aten.any.default,
    aten.any.dim,
    aten.any.dims,
    aten.argmax.default,
    aten.argmin.default,
    aten.argsort.default,
    aten.bernoulli.Tensor,
    aten.bernoulli.default,
    aten.bernoulli.p,
    aten.binomial.default,
    aten.bucketize.Tensor,
    aten.cauchy.default,
    aten.count_nonzero.default,
    aten.detach.default,
    aten.detach_copy.default,
    aten.empty_like.default,
    aten.exponential.default,
    aten.full_like.default,
    aten.geometric.default,
    aten.histc.default,
    aten.log_normal.default,
    aten.multinomial.default,
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.nonzero.default,
    aten.normal.Tensor_Tensor,
    aten.normal.Tensor_float,
    aten.normal.float_Tensor,
    aten.normal_functional.default,
    aten.ones_like.default,
    aten.poisson.default,
    aten.rand_like.default,
    aten.rand_like.generator,
    aten.randint_like.default,
    aten.randint_like.low_dtype,
    aten.randn_like.default,
    aten.randn_like.generator,
    aten.random.default,
    aten.random.to,
    aten.uniform.default,
    aten.zeros_like.default,
    family=NOTHING,
    needs_vjp=False,
)(nothing)
