"""ONNX operators over sequences in torch: attention, and recurrent layers unrolled over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, imports

_ATTRIBUTES = {
    "is_causal",
    "kv_num_heads",
    "q_num_heads",
    "qk_matmul_output_mode",
    "scale",
    "softcap",
    "softmax_precision",
}


@imports("Attention")
def attention(
    node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *cache: Tensor | None
) -> Any:  # fmt: skip
    """Heads apart [n, heads, length, width], or side by side [n, length, heads * width] with their number given."""
    unknown = sorted(set(node.attributes) - _ATTRIBUTES)
    if any(item is not None for item in cache) or node.outputs > 1 or node.get("softcap", 0.0) or unknown:
        raise OnnxError(f"Attention {node.name!r}: caches, further outputs, softcap, {unknown} are not supported")
    causal, scale = bool(node.get("is_causal", 0)), node.get("scale")
    joined = q.dim() == 3
    if joined:
        q = _apart(q, node.get("q_num_heads"))
        k, v = (_apart(x, node.get("kv_num_heads")) for x in (k, v))
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if causal and (mask is not None or q.shape[-2] != k.shape[-2]):
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        mask = seen if mask is None else _both(seen, mask)
        causal = False
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2).flatten(2) if joined else out


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _both(seen: Tensor, mask: Tensor) -> Tensor:
    return seen & mask if mask.dtype == torch.bool else torch.where(seen, mask, float("-inf"))


@imports("LSTM", "GRU", "RNN")
def recurrent(
    node: Node, x: Tensor, w: Tensor, r: Tensor, bias: Any = None, lengths: Any = None, *state: Any
) -> Any:  # fmt: skip
    """Unrolled over time: x [time, batch, inputs]; Y [time, directions, batch, hidden], then the last states."""
    if lengths is not None or node.get("clip") is not None or node.get("layout", 0) or node.get("input_forget", 0):
        raise OnnxError(f"{node.kind} {node.name!r}: lengths, clip, layout and input_forget are not supported")
    if len(state) > 2 and state[2] is not None:
        raise OnnxError(f"LSTM {node.name!r}: peepholes are not supported")
    names = [str(a).lower() for a in node.get("activations", [])]
    usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[node.kind]
    if names and names != usual * (len(names) // len(usual)):
        raise OnnxError(f"{node.kind} {node.name!r}: activations {names} are not supported, {usual} are")
    direction, hidden = node.get("direction", "forward"), r.shape[-1]
    start = [s if s is not None else x.new_zeros(w.shape[0], x.shape[1], hidden) for s in (*state, None, None)[:2]]
    outputs, lasts = [], []
    for d in range(w.shape[0]):
        backward = direction == "reverse" or d == 1
        b = x.new_zeros(2 * w.shape[1]) if bias is None else bias[d]
        series, last = _unroll(node, x.flip(0) if backward else x, w[d], r[d], b, [s[d] for s in start])
        outputs.append(series.flip(0) if backward else series)
        lasts.append(last)
    found = [torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*lasts))]
    return tuple(found[: max(node.outputs, 1)]) if node.outputs > 1 else found[0]


def _unroll(node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor, state: list[Tensor]) -> Any:
    wb, rb = b.chunk(2)
    given = F.linear(x, w, wb)
    h, c = state
    series = []
    for t in range(x.shape[0]):
        if node.kind == "LSTM":
            i, o, f, g = (given[t] + F.linear(h, r, rb)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        elif node.kind == "GRU":
            h = _gru_step(node, given[t], h, r, rb)
        else:
            h = torch.tanh(given[t] + F.linear(h, r, rb))
        series.append(h)
    return torch.stack(series), [h, c] if node.kind == "LSTM" else [h]


def _gru_step(node: Node, given: Tensor, h: Tensor, r: Tensor, rb: Tensor) -> Tensor:
    (z, reset, new), parts, biases = given.chunk(3, -1), r.chunk(3), rb.chunk(3)
    z = torch.sigmoid(z + F.linear(h, parts[0], biases[0]))
    reset = torch.sigmoid(reset + F.linear(h, parts[1], biases[1]))
    if node.get("linear_before_reset", 0):
        new = torch.tanh(new + reset * F.linear(h, parts[2], biases[2]))
    else:
        new = torch.tanh(new + F.linear(reset * h, parts[2], biases[2]))
    return (1 - z) * new + z * h
