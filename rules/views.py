"""Views and copies, and dropout: entries move or are scaled, and take their signal along (the true vjp).

Here are also `vjp` and `nothing`, the two rules that most operations of the other files share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import GENERAL, RANDOM, VIEW, Call, Signals, rule

aten = torch.ops.aten


def vjp(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """The operation's own vector-Jacobian product."""
    return call.vjp(s)


def nothing(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """No reward passes."""
    return [None] * len(call.inputs)


@rule(aten.constant_pad_nd.default, family=VIEW, needs_vjp=False, is_vjp=True)
def padding(call: Call, s: Tensor, x: Tensor, pad: Any, *args: Any) -> Signals:
    """The part of s that stands where x stood: the vjp, in slices, which trace for open sizes; a negative pad cuts x."""
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2])):
        dim = s.dim() - 1 - i
        s = s.narrow(dim, max(before, 0), s.shape[dim] - max(before, 0) - max(after, 0))
        if before < 0 or after < 0:
            edges = [list(s.shape), list(s.shape)]
            edges[0][dim], edges[1][dim] = max(-before, 0), max(-after, 0)
            s = torch.cat([s.new_zeros(edges[0]), s, s.new_zeros(edges[1])], dim)
    return [s]


@rule(aten.as_strided_scatter.default, family=VIEW, needs_vjp=False, is_vjp=True)
def strided_scatter(
    call: Call, s: Tensor, x: Tensor, src: Tensor, size: Any, stride: Any, offset: int | None = None
) -> Signals:
    """The vjp of a write to a strided view: to x where nothing was written, to src what stands there; torch's is wrong."""
    laid_out = torch.zeros_like(x) + s
    outside = aten.as_strided_scatter(laid_out, torch.zeros_like(src), size, stride, offset)
    return [outside, aten.as_strided_copy(laid_out, size, stride, offset)]


_library = torch.library.Library("lfpgraph_writes", "DEF")
_library.define("held(Tensor x, Tensor now) -> Tensor")
_library.impl("held", lambda x, now: now.clone(), "CompositeExplicitAutograd")
torch.library.register_autograd("lfpgraph_writes::held", lambda _, s: (s, None), lib=_library)
HELD = torch.ops.lfpgraph_writes.held.default  # a tensor that was written to unseen by autograd, as it is now


@rule(HELD, family=GENERAL, needs_vjp=False, is_vjp=True)
def held(call: Call, s: Tensor, x: Tensor, now: Tensor) -> Signals:
    """What autograd hands back: nothing of the write, all to what the tensor was before."""
    return [s, None]


_WRITTEN = {
    aten.diagonal_scatter.default: aten.diagonal.default,
    aten.select_scatter.default: aten.select.int,
    aten.slice_scatter.default: aten.slice.Tensor,
}


@rule(*_WRITTEN, family=VIEW, needs_vjp=False, is_vjp=True)
def scatter(call: Call, s: Tensor, x: Tensor, src: Tensor, *where: Any, **named: Any) -> Signals:
    """The vjp of a write to a view, which torch lacks for complex numbers."""
    return [
        call.op(s, torch.zeros_like(src, dtype=s.dtype), *where, **named) if call.wanted[0] else None,
        _WRITTEN[call.op](s, *where, **named) if call.wanted[1] else None,
    ]


@rule(aten.rrelu_with_noise_functional.default, family=RANDOM, needs_vjp=False, is_vjp=True)
def noisy_slope(
    call: Call,
    s: Any,
    x: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    *_: Any,
) -> Signals:
    """The vjp of rrelu: the slopes it drew, its second output, which torch's derivative forgets."""
    if training:
        return [s[0] * call.output[1], None]
    return [torch.where(x > 0, s[0], s[0] * ((lower + upper) / 2)), None]


rule(
    aten._pad_circular.default,
    aten._reshape_alias.default,
    aten._reshape_alias_copy.default,
    aten._reshape_copy.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_view.default,
    aten.alias.default,
    aten.alias_copy.default,
    aten.as_strided.default,
    aten.as_strided_copy.default,
    aten.atleast_1d.Sequence,
    aten.atleast_2d.Sequence,
    aten.atleast_3d.Sequence,
    aten.broadcast_tensors.default,
    aten.cat.default,
    aten.channel_shuffle.default,
    aten.chunk.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.diag_embed.default,
    aten.diagonal.default,
    aten.diagonal_copy.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.expand_copy.default,
    aten.flatten.using_ints,
    aten.flip.default,
    aten.im2col.default,
    aten.lift.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten.max_unpool2d.default,
    aten.max_unpool3d.default,
    aten.meshgrid.default,
    aten.meshgrid.indexing,
    aten.movedim.int,
    aten.narrow.default,
    aten.narrow_copy.default,
    aten.permute.default,
    aten.permute_copy.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.reshape.default,
    aten.resolve_neg.default,
    aten.roll.default,
    aten.rot90.default,
    aten.select.int,
    aten.select_copy.int,
    aten.slice.Tensor,
    aten.slice_copy.Tensor,
    aten.split.Tensor,
    aten.split_copy.Tensor,
    aten.split_with_sizes.default,
    aten.split_with_sizes_copy.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_copy.default,
    aten.squeeze_copy.dim,
    aten.squeeze_copy.dims,
    aten.stack.default,
    aten.t.default,
    aten.t_copy.default,
    aten.transpose.int,
    aten.transpose_copy.int,
    aten.tril.default,
    aten.triu.default,
    aten.unbind.int,
    aten.unbind_copy.int,
    aten.unflatten.int,
    aten.unfold.default,
    aten.unfold_copy.default,
    aten.unsafe_chunk.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.unsqueeze.default,
    aten.unsqueeze_copy.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.default,
    aten.upsample_nearest3d.vec,
    aten.view.default,
    aten.view_copy.default,
    family=VIEW,
)(vjp)
rule(
    aten.dropout.default,
    aten.native_dropout.default,
    aten.rrelu_with_noise.default,  # live, where autograd's own answer is taken; traced, it is the functional one
    family=RANDOM,
)(vjp)
