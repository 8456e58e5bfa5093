"""Statistics, matrix functions, sampling, maps of complex numbers, losses: the true vjp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import GENERAL, TRANSFORM, Call, Signals, rule

from .views import vjp

aten = torch.ops.aten
_CHOLESKY = [aten.cholesky.default] if hasattr(aten, "cholesky") else []  # torch 2.14 has linalg_cholesky alone

_DRAWN = "this project: a drawn sample as a function of its parameters, true vjp"


@rule(aten._sample_dirichlet.default, family=GENERAL, source=_DRAWN, needs_vjp=False, is_vjp=True)
def dirichlet(call: Call, s: Tensor, concentration: Tensor, *args: Any) -> Signals:
    """The vjp of a sample from a Dirichlet distribution, which torch has outside its table of derivatives."""
    z, total = call.output, concentration.sum(-1, True).expand_as(concentration)
    return [torch._dirichlet_grad(z, concentration, total) * (s - (z * s).sum(-1, True))]


rule(aten._standard_gamma.default, family=GENERAL, source=_DRAWN)(vjp)
rule(
    aten._pdist_forward.default,
    aten._weight_norm_interface.default,
    aten.angle.default,
    aten.cumprod.default,
    aten.dist.default,
    aten.frexp.Tensor,
    aten.index_reduce.default,
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
    aten.segment_reduce.default,
    aten.std.correction,
    aten.std_mean.correction,
    aten.var.correction,
    aten.var.dim,
    aten.var_mean.correction,
    family=GENERAL,
    source="this project: a statistic of an activation, true vjp",
)(vjp)
rule(
    aten._cdist_forward.default,
    aten._linalg_det.default,
    aten._linalg_eigh.default,
    aten._linalg_slogdet.default,
    aten._linalg_solve_ex.default,
    aten._linalg_svd.default,
    *_CHOLESKY,
    aten.cholesky_inverse.default,
    aten.cholesky_solve.default,
    aten.linalg_cholesky.default,
    aten.linalg_cholesky_ex.default,
    aten.linalg_eig.default,
    aten.linalg_householder_product.default,
    aten.linalg_inv.default,
    aten.linalg_inv_ex.default,
    aten.linalg_lstsq.default,
    aten.linalg_lu.default,
    aten.linalg_lu_factor.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_lu_solve.default,
    aten.linalg_matrix_exp.default,
    aten.linalg_pinv.atol_rtol_tensor,
    aten.linalg_pinv.default,
    aten.linalg_qr.default,
    aten.linalg_slogdet.default,
    aten.linalg_solve.default,
    aten.linalg_solve_triangular.default,
    aten.linalg_svd.default,
    aten.linalg_tensorinv.default,
    aten.lu_unpack.default,
    aten.ormqr.default,
    aten.triangular_solve.default,
    family=GENERAL,
    source="this project: a matrix function, true vjp",
)(vjp)
rule(
    aten.grid_sampler_2d.default,
    aten.grid_sampler_3d.default,
    family=GENERAL,
    source="this project: linear in the values, true vjp to values and places alike",
)(vjp)
rule(
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
    family=TRANSFORM,
)(vjp)
rule(
    aten._ctc_loss.Tensor,
    aten._ctc_loss.default,
    aten.binary_cross_entropy.default,
    aten.binary_cross_entropy_with_logits.default,
    aten.huber_loss.default,
    aten.mse_loss.default,
    aten.multi_margin_loss.default,
    aten.multilabel_margin_loss.default,
    aten.nll_loss2d_forward.default,
    aten.nll_loss_forward.default,
    aten.nll_loss_nd.default,
    aten.smooth_l1_loss.default,
    aten.soft_margin_loss.default,
    "torch_nn::_linear_cross_entropy_batch_chunked_no_reduction",
    family=GENERAL,
    source="a loss: its gradient is the reward (LFP section 3.3)",
)(vjp)
