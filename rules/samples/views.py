"""Samples of views, copies, selections and dropout."""

from __future__ import annotations

import torch

from .base import call, case

aten = torch.ops.aten

case(
    [
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.lift_fresh_copy.default,
        aten.t.default,
        aten.tril.default,
        aten.triu.default,
    ],
    lambda t: call(t(t.n, 4)),
)
# as_strided reads the storage: its strides are right for one layout only.
case(aten.as_strided.default, lambda t: call(t(t.n + 2, 4), [t.n, 3], [4, 1]), strided=False)
case(aten.as_strided.default, lambda t: call(t(6), [4, 3], [1, 1]), "overlap", strided=False)
case(aten._unsafe_view.default, lambda t: call(t(t.n, 6), [t.n, 2, 3]))
case([aten.reshape.default, aten.view.default], lambda t: call(t(t.n, 6), [t.n, 2, 3]))
case(aten.reshape.default, lambda t: call(t(t.n, 3, 2).mT, [t.n, 6]), "copies")
case(aten.flatten.using_ints, lambda t: call(t(t.n, 3, 2), 1))
case(aten.unflatten.int, lambda t: call(t(t.n, 6), 1, [2, 3]))
case(aten.cat.default, lambda t: call([t(t.n, 2), t(t.n, 3)], 1), active=(0, 1))
case(aten.cat.default, lambda t: call([t(1, 2), t(t.n, 2)]), "weight", active=(1,), weight=(0,))
case(aten.stack.default, lambda t: call([t(t.n, 3), t(t.n, 3)], 1), active=(0, 1))
case([aten.chunk.default, aten.unsafe_chunk.default], lambda t: call(t(t.n, 5), 2, 1))
case([aten.split.Tensor, aten.unsafe_split.Tensor], lambda t: call(t(t.n, 5), 2, 1))
case(
    [aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default],
    lambda t: call(t(t.n, 5), [2, 3], 1),
)
case(aten.unbind.int, lambda t: call(t(t.n, 3), 1))
case(aten.constant_pad_nd.default, lambda t: call(t(t.n, 3), [1, 2], 0.5))
case(aten.constant_pad_nd.default, lambda t: call(t(t.n, 4, 3), [1, -1, -2, 1], 0.5), "cuts")
case([aten.reflection_pad1d.default, aten.replication_pad1d.default], lambda t: call(t(t.n, 2, 3), [1, 2]))
case(
    [aten.reflection_pad2d.default, aten.replication_pad2d.default],
    lambda t: call(t(t.n, 2, 3, 3), [1, 2, 0, 1]),
)
case(aten.diagonal.default, lambda t: call(t(t.n, 3, 3), 1, 1, 2))
case(aten.expand.default, lambda t: call(t(t.n, 1), [t.n, 3]))
case(aten.expand.default, lambda t: call(t(3), [t.n, -1]), "new_dimension")
case(aten.expand_as.default, lambda t: call(t(t.n, 1), t(t.n, 3)))
case(aten.flip.default, lambda t: call(t(t.n, 3), [0, 1]))
case(aten.movedim.int, lambda t: call(t(t.n, 3, 2), 0, 2))
case(aten.permute.default, lambda t: call(t(t.n, 3, 2), [2, 0, 1]))
case(aten.transpose.int, lambda t: call(t(t.n, 3, 2), 0, -1))
case(aten.narrow.default, lambda t: call(t(t.n, 5), 1, 1, 3))
case(aten.slice.Tensor, lambda t: call(t(t.n, 5), 1, 1, 5, 2))
case(aten.select.int, lambda t: call(t(t.n, 3), 1, -1))
case(aten.select_scatter.default, lambda t: call(t(t.n, 3), t(t.n), 1, 0), active=(0, 1))
case(aten.slice_scatter.default, lambda t: call(t(t.n, 5), t(t.n, 2), 1, 1, 3), active=(0, 1))
case(aten.slice_scatter.default, lambda t: call(t(t.n, 5), t(t.n, 2), 1, 1, 3), "constant", active=(1,))
# torch's derivative of these gives an empty batch the wrong shape.
case(aten.pixel_shuffle.default, lambda t: call(t(t.n, 4, 2, 2), 2), empty=False)
case(aten.pixel_unshuffle.default, lambda t: call(t(t.n, 1, 4, 4), 2), empty=False)
case(aten.repeat.default, lambda t: call(t(t.n, 3), [2, 2]))
case(aten.repeat_interleave.self_int, lambda t: call(t(t.n, 3), 2, 1))
case(aten.roll.default, lambda t: call(t(t.n, 3), [1], [1]))
case(aten.squeeze.default, lambda t: call(t(t.n, 1, 3, 1)))
case(aten.squeeze.dim, lambda t: call(t(t.n, 1, 3), 1))
case(aten.squeeze.dims, lambda t: call(t(t.n, 1, 3, 1), [1, 3]))
case(aten.unsqueeze.default, lambda t: call(t(t.n, 3), -1))
case(aten.unfold.default, lambda t: call(t(t.n, 5), 1, 3, 1))

# The largest or smallest of nothing does not exist: no empty batch for reductions over all entries.
case([aten.amax.default, aten.amin.default], lambda t: call(t(t.n, 5), [1]))
case([aten.amax.default, aten.amin.default], lambda t: call(t(t.n, 5)), "all", empty=False)
case([aten.amax.default, aten.amin.default], lambda t: call(t(t.n, 5).relu(), [1], True), "ties")
case([aten.max.default, aten.min.default], lambda t: call(t(t.n, 5)), empty=False)
case([aten.max.dim, aten.median.dim, aten.min.dim], lambda t: call(t(t.n, 5), 1, True))
case(aten.sort.default, lambda t: call(t(t.n, 5), 1, True))
case(aten.topk.default, lambda t: call(t(t.n, 5), 2, 1))
case(aten.gather.default, lambda t: call(t(t.n, 5), 1, t.index(5, t.n, 3)))
case(aten.take_along_dim.default, lambda t: call(t(t.n, 5), t.index(5, t.n, 3), 1))
case(aten.index.Tensor, lambda t: call(t(t.n, 5), [None, t.index(5, 3)]))
case(aten.index.Tensor, lambda t: call(t(t.n, 5), [t.mask(2, 5)]), "mask")
case(aten.index_select.default, lambda t: call(t(t.n, 5), 1, t.index(5, 3)))
case(aten.index_put.default, lambda t: call(t(t.n, 5), [None, torch.tensor([3, 1])], t(t.n, 2)), active=(0, 2))
case(
    aten.index_put.default,
    lambda t: call(t(t.n, 5), [None, torch.tensor([3, 3])], t(t.n, 2), True),
    "accumulate",
    active=(0, 2),
)
case(aten.masked_scatter.default, lambda t: call(t(t.n, 5), t.mask(t.n, 5), t(t.n, 5)), active=(0, 2))
case(aten.masked_select.default, lambda t: call(t(t.n, 5), t.mask(t.n, 5)))
case(aten.scatter.src, lambda t: call(t(t.n, 5), 1, t.index(5, t.n, 1), t(t.n, 1)), active=(0, 2))
case(aten.scatter.src, lambda t: call(t(t.n, 5), 1, t.index(5, t.n, 1), t(t.n, 1)), "constant", active=(2,))
case(aten.scatter.value, lambda t: call(t(t.n, 5), 1, t.index(5, t.n, 2), 0.5))

case(aten.adaptive_max_pool1d.default, lambda t: call(t(t.n, 2, 5), [2]))
case(aten.adaptive_max_pool2d.default, lambda t: call(t(t.n, 2, 3, 3), [2, 2]))
case(aten.max_pool1d.default, lambda t: call(t(t.n, 2, 5), [2]))
case(
    [aten.max_pool2d.default, aten.max_pool2d_with_indices.default],
    lambda t: call(t(t.n, 2, 3, 3), [2, 2], [1, 1]),
)
case(aten.max_pool2d.default, lambda t: call(t(t.n, 1, 4, 4), [2, 2], [2, 2], [1, 1]), "padding")
case(
    [aten.max_pool3d.default, aten.max_pool3d_with_indices.default],
    lambda t: call(t(t.n, 1, 2, 2, 3), [2, 2, 2], [1, 1, 1]),
)

case(aten.dropout.default, lambda t: call(t(t.n, 5), 0.5, True))
case(aten.native_dropout.default, lambda t: call(t(t.n, 5), 0.5, True))
case([aten.dropout.default, aten.native_dropout.default], lambda t: call(t(t.n, 5), 0.5, False), "evaluation")

case(torch.ops.lfpgraph_writes.held.default, lambda t: call(t(t.n, 5), t(t.n, 5)))
