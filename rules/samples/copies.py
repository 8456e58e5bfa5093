"""Samples of functional copies, rarer views and resampling."""

from __future__ import annotations

import torch

from .base import call, case

aten = torch.ops.aten

case(
    [
        aten.alias_copy.default,
        aten.lift.default,
        aten.lift_fresh.default,
        aten.resolve_neg.default,
        aten.t_copy.default,
    ],
    lambda t: call(t(t.n, 4)),
)
case(aten._reshape_alias.default, lambda t: call(t(t.n, 6), [t.n, 2, 3], [6, 3, 1]), strided=False)
case(aten._unsafe_index.Tensor, lambda t: call(t(t.n, 5), [None, t.index(5, 3)]))
case(aten.as_strided_copy.default, lambda t: call(t(t.n + 2, 4), [t.n, 3], [4, 1]), strided=False)
case(aten.channel_shuffle.default, lambda t: call(t(t.n, 4, 2, 2), 2))
case(aten.diag_embed.default, lambda t: call(t(t.n, 3), 1))
case(aten.diagonal_copy.default, lambda t: call(t(t.n, 3, 3), 1, 1, 2))
case(aten.diagonal_scatter.default, lambda t: call(t(t.n, 3, 3), t(t.n, 3), 0, 1, 2), active=(0, 1))
case(aten.expand_copy.default, lambda t: call(t(t.n, 1), [t.n, 3]))
case(aten.im2col.default, lambda t: call(t(t.n, 2, 3, 3), [2, 2], [1, 1], [0, 0], [1, 1]), empty=False)
# col2im takes channels of 2 * 2 patches apart again and adds what overlaps.
case(aten.col2im.default, lambda t: call(t(t.n, 4, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]), empty=False)
case(
    aten.max_unpool2d.default,
    lambda t: call(t(2, 1, 1, 2), torch.tensor([0, 3]).expand(2, 1, 1, 2), [2, 2]),
    empty=False,
)
case(
    aten.max_unpool3d.default,
    lambda t: call(t(2, 1, 1, 1, 2), torch.tensor([0, 3]).expand(2, 1, 1, 1, 2), [1, 2, 2], [1, 2, 1], [0, 0, 0]),
    empty=False,
)
case(aten.permute_copy.default, lambda t: call(t(t.n, 3, 2), [2, 0, 1]))
case(
    [aten.reflection_pad3d.default, aten.replication_pad3d.default],
    lambda t: call(t(t.n, 1, 2, 2, 3), [1, 1, 0, 1, 1, 0]),
)
case(aten.rot90.default, lambda t: call(t(t.n, 3, 2), 1, [1, 2]))
case(aten.select_copy.int, lambda t: call(t(t.n, 3), 1, -1))
case(aten.slice_copy.Tensor, lambda t: call(t(t.n, 5), 1, 1, 5, 2))
case(aten.split_copy.Tensor, lambda t: call(t(t.n, 5), 2, 1))
case(aten.split_with_sizes_copy.default, lambda t: call(t(t.n, 5), [2, 3], 1))
case(aten.squeeze_copy.default, lambda t: call(t(t.n, 1, 3, 1)))
case(aten.squeeze_copy.dim, lambda t: call(t(t.n, 1, 3), 1))
case(aten.squeeze_copy.dims, lambda t: call(t(t.n, 1, 3, 1), [1, 3]))
case(aten.transpose_copy.int, lambda t: call(t(t.n, 3, 2), 0, -1))
case(aten.unbind_copy.int, lambda t: call(t(t.n, 3), 1))
case(aten.unfold_copy.default, lambda t: call(t(t.n, 5), 1, 3, 1))
case(aten.unsqueeze_copy.default, lambda t: call(t(t.n, 3), -1))
case(aten.view_copy.default, lambda t: call(t(t.n, 6), [t.n, 2, 3]))
case(aten.upsample_nearest1d.default, lambda t: call(t(t.n, 2, 3), [6]), empty=False)
case(aten.upsample_nearest1d.vec, lambda t: call(t(t.n, 2, 3), None, [2.0]), empty=False)
case(aten.upsample_nearest2d.default, lambda t: call(t(t.n, 1, 2, 3), [4, 5]), empty=False)
case(aten.upsample_nearest2d.vec, lambda t: call(t(t.n, 1, 2, 3), [4, 6], None), empty=False)
case(aten.upsample_nearest3d.default, lambda t: call(t(t.n, 1, 2, 1, 2), [4, 2, 2]), empty=False)
case(aten.upsample_nearest3d.vec, lambda t: call(t(t.n, 1, 2, 1, 2), [4, 2, 2], None), empty=False)
case(aten.upsample_linear1d.default, lambda t: call(t(t.n, 2, 3), [5], False), empty=False)
case(aten.upsample_linear1d.vec, lambda t: call(t(t.n, 2, 3), [5], True, None), empty=False)
case(
    [aten.upsample_bicubic2d.default, aten.upsample_bilinear2d.default],
    lambda t: call(t(t.n, 1, 2, 3), [4, 5], False),
    empty=False,
)
case(
    [
        aten._upsample_bicubic2d_aa.default,
        aten._upsample_bilinear2d_aa.default,
    ],
    lambda t: call(t(t.n, 1, 4, 5), [2, 3], False),
    empty=False,
)
case(
    [
        aten._upsample_bicubic2d_aa.vec,
        aten._upsample_bilinear2d_aa.vec,
        aten.upsample_bicubic2d.vec,
        aten.upsample_bilinear2d.vec,
    ],
    lambda t: call(t(t.n, 1, 2, 3), [4, 5], True, None),
    empty=False,
)
case(aten.upsample_trilinear3d.default, lambda t: call(t(t.n, 1, 2, 2, 2), [3, 2, 3], False), empty=False)
case(aten.upsample_trilinear3d.vec, lambda t: call(t(t.n, 1, 2, 2, 2), [3, 2, 3], False, None), empty=False)
