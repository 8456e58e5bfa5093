"""Samples of special functions, fake quantisation, random draws and selections that few models use."""

from __future__ import annotations

import torch

from .base import call, case

aten = torch.ops.aten

case(
    [
        aten.special_airy_ai.default,
        aten.special_bessel_j0.default,
        aten.special_bessel_j1.default,
        aten.special_i1.default,
        aten.special_i1e.default,
        aten.special_log_ndtr.default,
        aten.special_modified_bessel_i0.default,
        aten.special_modified_bessel_i1.default,
        aten.special_ndtr.default,
        aten.special_spherical_bessel_j0.default,
    ],
    lambda t: call(t(t.n, 5)),
)
case(
    [
        aten.special_bessel_y0.default,
        aten.special_bessel_y1.default,
        aten.special_entr.default,
        aten.special_modified_bessel_k0.default,
        aten.special_modified_bessel_k1.default,
    ],
    lambda t: call(t.positive(t.n, 5)),
)
case(
    [
        aten.special_chebyshev_polynomial_t.n_scalar,
        aten.special_chebyshev_polynomial_u.n_scalar,
        aten.special_hermite_polynomial_h.n_scalar,
        aten.special_hermite_polynomial_he.n_scalar,
        aten.special_laguerre_polynomial_l.n_scalar,
        aten.special_legendre_polynomial_p.n_scalar,
    ],
    lambda t: call(t.inside(t.n, 5), 3),
)
case(aten.special_ndtri.default, lambda t: call(t.inside(t.n, 5).abs() / 2 + 0.25))
case(aten.polygamma.default, lambda t: call(1, t.positive(t.n, 5)))
case([aten.igamma.default, aten.igammac.default], lambda t: call(t.positive(5), t.positive(t.n, 5)), active=(1,))
case(aten.special_zeta.default, lambda t: call(t.above_one(5), t.positive(t.n, 5)), active=(1,))
case(aten.special_zeta.other_scalar, lambda t: call(t.above_one(t.n, 5), 1.5))
case(aten.special_zeta.self_scalar, lambda t: call(2.5, t.positive(t.n, 5)))
case(aten.special_xlog1py.default, lambda t: call(t(t.n, 5), t.positive(t.n, 5)))
case(aten.special_xlog1py.default, lambda t: call(t(t.n, 5), t.positive(t.n, 5)), "two_active", active=(0, 1))
case(aten.xlogy.Scalar_Other, lambda t: call(t(t.n, 5), 1.5))
case(aten.xlogy.Scalar_Self, lambda t: call(1.5, t.positive(t.n, 5)))
case(aten.copysign.Scalar, lambda t: call(t(t.n, 5), -1.0))
case([aten.copysign.Tensor, aten.nextafter.default], lambda t: call(t(t.n, 5), t.nonzero(5)))
case(aten.ldexp.Tensor, lambda t: call(t(t.n, 5), torch.tensor([0, 1, 2, -1, -2])))
case(aten.remainder.Scalar_Tensor, lambda t: call(1.5, t.positive(t.n, 5)))
case([aten.angle.default, aten.frexp.Tensor, aten.signbit.default], lambda t: call(t(t.n, 5)))

# Steps of half a unit, eight levels: values outside the range are cut.
case(aten.fake_quantize_per_tensor_affine.default, lambda t: call(t(t.n, 5), 0.5, 0, -4, 3))
case(
    aten.fake_quantize_per_tensor_affine.tensor_qparams,
    lambda t: call(t(t.n, 5), torch.tensor([0.5]), torch.tensor([0]), -4, 3),
)
case(
    aten.fake_quantize_per_channel_affine.default,
    lambda t: call(t(t.n, 3), torch.tensor([0.5, 0.25, 1.0]), torch.tensor([0, 1, 0]).int(), 1, -4, 3),
)

case(
    [
        aten.cauchy.default,
        aten.log_normal.default,
        aten.normal.Tensor_float,
        aten.normal_functional.default,
        aten.random.default,
    ],
    lambda t: call(t(t.n, 5)),
)
case(aten.binomial.default, lambda t: call(t.positive(t.n, 5).ceil(), t.inside(t.n, 5).abs()))
case(aten.geometric.default, lambda t: call(t(t.n, 5), 0.5))
case(aten.normal.Tensor_Tensor, lambda t: call(t(t.n, 5), t.positive(t.n, 5)))
case(aten.normal.float_Tensor, lambda t: call(0.5, t.positive(t.n, 5)))
case([aten.rand_like.generator, aten.randn_like.generator], lambda t: call(t(t.n, 5), generator=None))
case([aten.randint_like.default, aten.random.to], lambda t: call(t(t.n, 5), 3))
case(aten.randint_like.low_dtype, lambda t: call(t(t.n, 5), 1, 3))
case(aten._sample_dirichlet.default, lambda t: call(t.positive(t.n, 5)))
case(aten._standard_gamma.default, lambda t: call(t.positive(t.n, 5)))
case(
    aten.rrelu_with_noise_functional.default,
    lambda t: call(t(t.n, 5), torch.zeros(t.n, 5, dtype=t.dtype), 0.1, 0.5, True),
)
case(
    aten.rrelu_with_noise_functional.default,
    lambda t: call(t(t.n, 5), torch.zeros(t.n, 5, dtype=t.dtype), 0.1, 0.5, False),
    "evaluation",
)
case(
    aten.rrelu_with_noise.default,
    lambda t: call(t(t.n, 5), torch.zeros(t.n, 5, dtype=t.dtype), 0.1, 0.5, False),
)

case(
    aten.fractional_max_pool3d.default,
    lambda t: call(t(2, 1, 4, 4, 4), [1, 2, 2], [2, 2, 2], t.inside(2, 1, 3).abs()),
    empty=False,
)
case(
    aten.index_reduce.default,
    lambda t: call(t(t.n, 3), 1, torch.tensor([0, 2, 2]), t(t.n, 3), "amax"),
    active=(0, 2),
    empty=False,
)
case(aten.segment_reduce.default, lambda t: call(t(5, 2), "mean", lengths=torch.tensor([2, 3])), empty=False)
case(
    aten._ctc_loss.default,
    lambda t: call(t(4, 2, 3).log_softmax(-1), torch.tensor([[1, 2], [2, 1]]), [4, 4], [2, 2]),
    empty=False,
)
case(
    aten._ctc_loss.Tensor,
    lambda t: call(
        t(4, 2, 3).log_softmax(-1), torch.tensor([[1, 2], [2, 1]]), torch.tensor([4, 4]), torch.tensor([2, 2])
    ),
    empty=False,
)
case(aten.multi_margin_loss.default, lambda t: call(t(t.n, 3), t.index(3, t.n)), empty=False)
case(aten.multilabel_margin_loss.default, lambda t: call(t(t.n, 3), t.index(3, t.n, 3)), empty=False)

case(aten._pad_circular.default, lambda t: call(t(t.n, 2, 3), [1, 2]), empty=False)
case(aten._reshape_alias_copy.default, lambda t: call(t(t.n, 6), [t.n, 2, 3], [6, 3, 1]), strided=False)
case(aten._reshape_copy.default, lambda t: call(t(t.n, 6), [t.n, 2, 3]))
case(
    aten.as_strided_scatter.default,
    lambda t: call(t(t.n + 2, 4), t(t.n, 3), [t.n, 3], [4, 1]),
    active=(0, 1),
    strided=False,
)
case(
    [aten.atleast_1d.Sequence, aten.atleast_2d.Sequence, aten.atleast_3d.Sequence],
    lambda t: call([t(t.n, 2), t(3)]),
    active=(0, 1),
)
case(aten.broadcast_tensors.default, lambda t: call([t(t.n, 1), t(3)]), active=(0, 1))
case(aten.meshgrid.default, lambda t: call([t(t.n), t(3)]), active=(0, 1))
case(aten.meshgrid.indexing, lambda t: call([t(t.n), t(3)], indexing="xy"), active=(0, 1))
case(aten.narrow_copy.default, lambda t: call(t(t.n, 5), 1, 1, 3))
