"""Samples of matrix functions: inverses, factors, solutions of linear systems."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Maker, call, case

aten = torch.ops.aten
CHOLESKY = [aten.cholesky.default] if hasattr(aten, "cholesky") else []  # gone in torch 2.14


def _wide(x: Tensor) -> Tensor:
    """The same numbers in float32 where they are bfloat16: torch has no complex numbers of that precision."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _regular(t: Maker) -> Tensor:
    """Well-conditioned square matrices."""
    return t.inside(t.n, 3, 3) + 2 * torch.eye(3, dtype=t.dtype)


def _definite(t: Maker) -> Tensor:
    """Symmetric positive definite matrices with distinct eigenvalues."""
    x = t.inside(t.n, 3, 3)
    return x @ x.mT + torch.diag(torch.tensor([1, 2, 4], dtype=t.dtype))


case(
    [
        aten._linalg_det.default,
        aten._linalg_slogdet.default,
        aten.linalg_inv.default,
        aten.linalg_inv_ex.default,
        aten.linalg_lu.default,
        aten.linalg_lu_factor.default,
        aten.linalg_lu_factor_ex.default,
        aten.linalg_pinv.atol_rtol_tensor,
        aten.linalg_qr.default,
        aten.linalg_slogdet.default,
    ],
    lambda t: call(_wide(_regular(t))),
    empty=False,
)
case(aten.linalg_matrix_exp.default, lambda t: call(_wide(t.inside(t.n, 3, 3))), empty=False)
case(aten.linalg_pinv.default, lambda t: call(_wide(_regular(t)), 1e-6), empty=False)
case(
    [aten._linalg_eigh.default, aten.linalg_cholesky.default, aten.linalg_cholesky_ex.default, *CHOLESKY],
    lambda t: call(_definite(t)),
    empty=False,
)
case(
    aten.linalg_lstsq.default,
    lambda t: call(_wide(_regular(t)), _wide(t(t.n, 3, 2)), driver="gelsy"),
    active=(0, 1),
    empty=False,
)
case([aten._linalg_svd.default, aten.linalg_svd.default], lambda t: call(_regular(t), False), empty=False)
case(aten.linalg_eig.default, lambda t: call(_wide(_definite(t))), empty=False)
case(aten.linalg_tensorinv.default, lambda t: call(_wide(_regular(t))[0], 1), empty=False)
case(
    [aten._linalg_solve_ex.default, aten.linalg_solve.default],
    lambda t: call(_regular(t), t(t.n, 3, 2)),
    active=(0, 1),
    empty=False,
)
case(
    aten.linalg_solve_triangular.default,
    lambda t: call(_regular(t), t(t.n, 3, 2), upper=True),
    active=(0, 1),
    empty=False,
)
case(aten.triangular_solve.default, lambda t: call(t(t.n, 3, 2), _regular(t)), active=(0, 1), empty=False)
case(aten.cholesky_inverse.default, lambda t: call(_regular(t).tril()), empty=False)
case(aten.cholesky_solve.default, lambda t: call(t(t.n, 3, 2), _regular(t).tril()), active=(0, 1), empty=False)
case(aten.linalg_householder_product.default, lambda t: call(_regular(t), t.inside(t.n, 3)), active=(0, 1), empty=False)
case(
    aten.ormqr.default,
    lambda t: call(_regular(t), t.inside(t.n, 3), t(t.n, 3, 2)),
    active=(0, 1, 2),
    empty=False,
)
_PIVOTS = torch.tensor([1, 3, 3], dtype=torch.int32)
case(
    aten.linalg_lu_solve.default,
    lambda t: call(_regular(t), _PIVOTS.expand(t.n, 3), t(t.n, 3, 2)),
    active=(0, 2),
    empty=False,
)
case(aten.lu_unpack.default, lambda t: call(_regular(t), _PIVOTS.expand(t.n, 3)), empty=False)
case(aten._cdist_forward.default, lambda t: call(t(t.n, 3, 2), t.nonzero(t.n, 4, 2), 2.0, None), active=(0, 1))
case(aten._pdist_forward.default, lambda t: call(t(4, 2), 2.0), empty=False, strided=False)
case(aten.outer.default, lambda t: call(t(t.n), t(3)), active=(0, 1))
case(aten.outer.default, lambda t: call(t(t.n), t(3)), "weight", weight=(1,))
