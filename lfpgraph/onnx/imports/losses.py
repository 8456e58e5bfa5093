"""Losses, and rarer functions of whole tensors: running products, chosen entries, rotary places, bits read as another type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, dtype_of, imports, numbers


@imports("NegativeLogLikelihoodLoss")
def nll(node: Node, x: Tensor, labels: Tensor, weights: Tensor | None = None) -> Any:
    return F.nll_loss(
        x,
        labels.long(),
        weights,
        ignore_index=node.get("ignore_index", -100),
        reduction=str(node.get("reduction", "mean")),
    )


@imports("SoftmaxCrossEntropyLoss")
def cross_entropy(node: Node, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Any:
    chances = F.log_softmax(scores, 1)
    loss = nll(node, chances, labels, weights)
    return (loss, chances) if node.outputs > 1 else loss


@imports("CumProd", known=True)
def cumprod(node: Node, x: Tensor, axis: Any) -> Any:
    at = int(numbers(node, axis)[0])
    turned = x.flip(at) if node.get("reverse", 0) else x
    if node.get("exclusive", 0):
        count = turned.shape[at]
        turned = torch.cat([torch.ones_like(turned.narrow(at, 0, 1)), turned.narrow(at, 0, count - 1)], at)
    found = torch.cumprod(turned, at).to(x.dtype)
    return found.flip(at) if node.get("reverse", 0) else found


@imports("BitCast")
def bit_cast(node: Node, x: Tensor) -> Any:
    dtype = dtype_of(node.get("to"))
    if dtype.itemsize != x.dtype.itemsize:
        raise OnnxError(f"BitCast {node.name!r} from {x.dtype} to {dtype}, of another size, is not supported")
    return x.contiguous().view(dtype)


@imports("Compress")
def compress(node: Node, x: Tensor, chosen: Tensor) -> Any:
    axis = node.get("axis")
    places = chosen.nonzero().squeeze(1)
    return x.flatten()[places] if axis is None else x.index_select(axis, places)


@imports("RotaryEmbedding")
def rotary(node: Node, x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Any:
    """Turns pairs of entries by the angles of their position: of x [n, heads, length, width], or [n, length, width]."""
    heads = node.get("num_heads", 0)
    wide = x.unflatten(-1, (heads, -1)) if x.dim() == 3 else x.transpose(1, 2)  # [n, length, heads, width]
    count = node.get("rotary_embedding_dim", 0) or wide.shape[-1]
    turned, rest = wide[..., :count], wide[..., count:]
    angles = [(t if places is None else t[places.long()]).unsqueeze(2)[..., : count // 2] for t in (cos, sin)]
    interleaved = bool(node.get("interleaved", 0))
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = angles[0] * a - angles[1] * b, angles[1] * a + angles[0] * b
    found = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    found = torch.cat([found, rest], -1)
    return found.flatten(2) if x.dim() == 3 else found.transpose(1, 2)
