"""Statistics, matrix functions, sampling, maps of complex numbers, losses: the true vjp."""

from __future__ import annotations

import torch

from lfpgraph.registry import GENERAL, TRANSFORM, rows

from .views import vjp

aten = torch.ops.aten

rows(
    GENERAL,
    vjp,
    [
        aten._weight_norm_interface.default,
        aten.cumprod.default,
        aten.dist.default,
        aten.linalg_vector_norm.default,
        aten.logcumsumexp.default,
        aten.logsumexp.default,
        aten.norm.Scalar,
        aten.norm.ScalarOpt_dim,
        aten.polar.default,
        aten.prod.default,
        aten.prod.dim_int,
        aten.renorm.default,
        aten.scatter_reduce.two,
        aten.std.correction,
        aten.std_mean.correction,
        aten.var.correction,
        aten.var.dim,
        aten.var_mean.correction,
    ],
    source="this project: a statistic of an activation, true vjp",
)
rows(
    GENERAL,
    vjp,
    [
        aten._cdist_forward.default,
        aten._linalg_det.default,
        aten._linalg_eigh.default,
        aten._linalg_solve_ex.default,
        aten._linalg_svd.default,
        aten.linalg_cholesky_ex.default,
        aten.linalg_inv_ex.default,
        aten.linalg_matrix_exp.default,
        aten.linalg_qr.default,
        aten.linalg_solve_triangular.default,
    ],
    source="this project: a matrix function, true vjp",
)
rows(
    GENERAL,
    vjp,
    [aten.grid_sampler_2d.default, aten.grid_sampler_3d.default],
    source="this project: linear in the values, true vjp to values and places alike",
)
rows(
    TRANSFORM,
    vjp,
    [
        aten._conj.default,
        aten._conj_physical.default,
        aten._fft_c2c.default,
        aten._fft_c2r.default,
        aten._fft_r2c.default,
        aten.complex.default,
        aten.imag.default,
        aten.real.default,
        aten.resolve_conj.default,
        aten.view_as_complex.default,
        aten.view_as_real.default,
    ],
)
rows(
    GENERAL,
    vjp,
    [
        aten.binary_cross_entropy.default,
        aten.binary_cross_entropy_with_logits.default,
        aten.huber_loss.default,
        aten.mse_loss.default,
        aten.nll_loss2d_forward.default,
        aten.nll_loss_forward.default,
        aten.nll_loss_nd.default,
        aten.smooth_l1_loss.default,
        aten.soft_margin_loss.default,
    ],
    source="a loss: its gradient is the reward (LFP section 3.3)",
)
