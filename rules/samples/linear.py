"""Samples of contractions, attention and normalisations."""

from __future__ import annotations

from typing import Any

import torch

from .base import call, case

aten = torch.ops.aten

case(aten.mm.default, lambda t: call(t(t.n, 3), t(3, 4)), weight=(1,))
case(aten.mm.default, lambda t: call(t(4, 3), t(3, t.n)), "weight_first", active=(1,), weight=(0,))
case(aten.mm.default, lambda t: call(t(t.n, 3), t(3, 4)), "constant")
case(aten.mm.default, lambda t: call(t(t.n, 3), t(3, 4)), "two_active", active=(0, 1))
case(aten.matmul.default, lambda t: call(t(t.n, 2, 3), t(3, 2)), weight=(1,))
case(aten.matmul.default, lambda t: call(t(t.n, 1, 2, 3), t(2, 3, 2)), "broadcast", active=(0, 1))
case(aten.bmm.default, lambda t: call(t(t.n, 2, 3), t(t.n, 3, 2)), active=(0, 1))
case(aten.bmm.default, lambda t: call(t(2, 2, 3), t(2, 3, 2)), "weight", weight=(1,))
case(aten.mv.default, lambda t: call(t(t.n, 3), t(3)), weight=(1,))
case(aten.mv.default, lambda t: call(t(t.n, 3), t(3)), "two_active", active=(0, 1))
case(aten.dot.default, lambda t: call(t(t.n), t(t.n)), weight=(1,))
case(aten.dot.default, lambda t: call(t(3), t(3)), "two_active", active=(0, 1))
case(aten.linear.default, lambda t: call(t(t.n, 3), t(4, 3), t(4)), weight=(1,), bias=(2,))
case(aten.linear.default, lambda t: call(t(t.n, 2, 3), t(4, 3)), "no_bias", weight=(1,))
case(aten.addmm.default, lambda t: call(t(4), t(t.n, 3), t(3, 4)), active=(1,), weight=(2,), bias=(0,))
case(
    aten.addmm.default,
    lambda t: call(t(4), t(t.n, 3), t(3, 4), beta=0.5, alpha=2.0),
    "scaled",
    active=(1,),
    weight=(2,),
    bias=(0,),
)
case(aten.addmm.default, lambda t: call(t(t.n, 4), t(t.n, 3), t(3, 4)), "residual", active=(0, 1), weight=(2,))
case(aten.addmv.default, lambda t: call(t(t.n), t(t.n, 3), t(3)), active=(1,), weight=(2,), bias=(0,))
case(aten.addmv.default, lambda t: call(t(t.n), t(t.n, 3), t(3)), "residual", active=(0, 1), weight=(2,))
case(aten.baddbmm.default, lambda t: call(t(t.n, 1, 2), t(t.n, 2, 3), t(t.n, 3, 2)), active=(1, 2))
case(
    aten.baddbmm.default,
    lambda t: call(t(2, 1, 2), t(t.n, 2, 3), t(2, 3, 2)),
    "weight",
    active=(1,),
    weight=(2,),
    bias=(0,),
)
case(
    aten.baddbmm.default,
    lambda t: call(t(t.n, 1, 2), t(t.n, 2, 3), t(t.n, 3, 2)),
    "residual",
    active=(0, 1, 2),
)
case(
    aten.bilinear.default,
    lambda t: call(t(t.n, 3), t(t.n, 2), t(4, 3, 2), t(4)),
    active=(0, 1),
    weight=(2,),
    bias=(3,),
)
case(aten.bilinear.default, lambda t: call(t(t.n, 3), t(t.n, 2), t(4, 3, 2)), "one_active", weight=(2,))
case(aten.einsum.default, lambda t: call("ni,io->no", [t(t.n, 3), t(3, 4)]), weight=(1,))
case(
    aten.einsum.default,
    lambda t: call("nqi,nki->nqk", [t(t.n, 2, 3), t(t.n, 4, 3)]),
    "two_active",
    active=(0, 1),
)
case(aten.embedding.default, lambda t: call(t(5, 3), t.index(5, t.n, 2)), active=(), weight=(0,))
case(aten.embedding.default, lambda t: call(t(5, 3), t.index(5, t.n, 2)), "soft", active=(0,))

_CONV: dict[str, Any] = {"active": (0,), "weight": (1,), "bias": (2,)}
case(aten.conv1d.default, lambda t: call(t(t.n, 2, 5), t(3, 2, 2), t(3)), **_CONV)
case(aten.conv1d.default, lambda t: call(t(t.n, 2, 5), t(4, 1, 2), t(4), [2], [1], [2], 2), "groups", **_CONV)
case(aten.conv1d.default, lambda t: call(t(t.n, 2, 5), t(3, 2, 2)), "two_active", active=(0, 1))
case(aten.conv1d.padding, lambda t: call(t(t.n, 2, 5), t(3, 2, 3), t(3), [1], "same"), **_CONV)
case(aten.conv2d.default, lambda t: call(t(t.n, 2, 3, 3), t(3, 2, 2, 2), t(3)), **_CONV)
case(
    aten.conv2d.default,
    lambda t: call(t(t.n, 2, 3, 3), t(2, 1, 2, 2), None, [2, 1], [1, 0], [1, 1], 2),
    "groups",
    weight=(1,),
)
case(aten.conv2d.padding, lambda t: call(t(t.n, 2, 3, 3), t(2, 2, 3, 3), t(2), [1, 1], "same"), **_CONV)
case(aten.conv3d.default, lambda t: call(t(t.n, 2, 2, 2, 2), t(2, 2, 2, 1, 1), t(2)), **_CONV)
case(aten.conv3d.padding, lambda t: call(t(t.n, 1, 2, 2, 2), t(2, 1, 1, 2, 1), t(2), [1] * 3, "valid"), **_CONV)
case(aten.conv_transpose1d.default, lambda t: call(t(t.n, 2, 4), t(2, 3, 2), t(3), [2]), **_CONV)
case(aten.conv_transpose2d.input, lambda t: call(t(t.n, 2, 2, 2), t(2, 2, 2, 2), t(2)), **_CONV)
case(aten.conv_transpose3d.input, lambda t: call(t(t.n, 1, 2, 2, 1), t(1, 2, 2, 1, 1), t(2)), **_CONV)
case(
    aten.convolution.default,
    lambda t: call(t(t.n, 2, 5), t(3, 2, 2), t(3), [1], [0], [1], False, [0], 1),
    **_CONV,
)
case(
    aten.convolution.default,
    lambda t: call(t(t.n, 2, 4), t(2, 3, 2), None, [2], [0], [1], True, [1], 1),
    "transposed",
    weight=(1,),
)

_sdpa = aten.scaled_dot_product_attention.default
case(_sdpa, lambda t: call(t(t.n, 2, 3), t(t.n, 4, 3), t(t.n, 4, 2)), active=(0, 1, 2))
case(_sdpa, lambda t: call(t(2, 3, 4), t(2, 3, 4), t(2, 3, 4), is_causal=True), "causal", active=(0, 1, 2))
case(_sdpa, lambda t: call(t(2, 2, 3), t(2, 4, 3), t(2, 4, 3), t(2, 4)), "mask", active=(0, 1, 2, 3))
case(_sdpa, lambda t: call(t(2, 2, 3), t(2, 4, 3), t(2, 4, 3), t.mask(2, 4)), "bool_mask", active=(0, 1, 2))
case(_sdpa, lambda t: call(t(2, 2, 3), t(2, 4, 3), t(2, 4, 3)), "learnt_query", active=(1, 2), weight=(0,))
case(_sdpa, lambda t: call(t(2, 2, 3), t(2, 4, 3), t(2, 4, 3)), "learnt_memory", active=(0,), weight=(1, 2))
case(_sdpa, lambda t: call(t(2, 2, 3), t(2, 4, 3), t(2, 4, 3)), "value", active=(2,))

# No empty batch for batch norms: torch refuses it, or its backward divides by zero and kills the process.
_AFFINE: dict[str, Any] = {"active": (0,), "weight": (1,), "bias": (2,)}
case(aten.layer_norm.default, lambda t: call(t(t.n, 4), [4], t(4), t(4)), **_AFFINE)
case(aten.layer_norm.default, lambda t: call(t(t.n, 3, 2), [3, 2]), "plain")
case(aten.native_layer_norm.default, lambda t: call(t(t.n, 4), [4], t(4), t(4), 1e-5), **_AFFINE)
case(aten.rms_norm.default, lambda t: call(t(t.n, 4), [4], t(4), 1e-5), weight=(1,))
case(aten._fused_rms_norm.default, lambda t: call(t(t.n, 4), [4], t(4), 1e-5), weight=(1,))
case(aten.group_norm.default, lambda t: call(t(t.n, 4, 3), 2, t(4), t(4)), **_AFFINE)
case(
    aten.native_group_norm.default,
    lambda t: call(t(t.n, 4, 3), t(4), t(4), t.n, 4, 3, 2, 1e-5),
    strided=False,
    **_AFFINE,
)
case(
    [aten.batch_norm.default, aten.instance_norm.default],
    lambda t: call(t(t.n, 2, 3), t(2), t(2), None, None, True, 0.1, 1e-5, False),
    empty=False,
    **_AFFINE,
)
case(
    [aten.native_batch_norm.default, aten._native_batch_norm_legit.default],
    lambda t: call(t(t.n, 2, 3), t(2), t(2), t(2), t.positive(2), False, 0.1, 1e-5),
    empty=False,
    **_AFFINE,
)
case(
    aten._native_batch_norm_legit_no_training.default,
    lambda t: call(t(t.n, 2, 3), t(2), t(2), t(2), t.positive(2), 0.1, 1e-5),
    empty=False,
    **_AFFINE,
)
case(
    aten._native_batch_norm_legit.no_stats,
    lambda t: call(t(t.n, 2, 3), t(2), t(2), True, 0.1, 1e-5),
    empty=False,
    **_AFFINE,
)
case(
    aten._native_batch_norm_legit_functional.default,
    lambda t: call(t(t.n, 2, 3), t(2), t(2), t(2), t.positive(2), True, 0.1, 1e-5),
    empty=False,
    **_AFFINE,
)
