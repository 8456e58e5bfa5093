"""ONNX operators over sequences in torch: attention, and recurrent layers unrolled over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, dtype_of, imports

_ATTRIBUTES = {
    "is_causal",
    "kv_num_heads",
    "left_window_size",
    "q_num_heads",
    "qk_matmul_output_mode",
    "right_window_size",
    "scale",
    "softcap",
    "softmax_precision",
}


@imports("Attention")
def attention(
    node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, lengths: Tensor | None = None,
) -> Any:  # fmt: skip
    """Heads apart [n, heads, length, width], or side by side [n, length, heads * width] with their number given.

    Further outputs are keys and values with those of the past before them, and the scores.
    """
    unknown = sorted(set(node.attributes) - _ATTRIBUTES)
    if unknown:
        raise OnnxError(f"Attention {node.name!r}: {unknown} are not supported")
    joined = q.dim() == 3
    if joined:
        q = _apart(q, node.get("q_num_heads"))
        k, v = (_apart(x, node.get("kv_num_heads")) for x in (k, v))
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present = k, v
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise OnnxError(f"Attention {node.name!r}: {q.shape[1]} heads of queries cannot share {k.shape[1]} of keys")
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scale, cap = node.get("scale"), node.get("softcap", 0.0)
    plain = _is_triangle(node, q, k, mask, past_k, lengths)
    seen = None if plain else _seen(node, q, k, mask, past_k, lengths)
    if node.outputs < 4 and not cap:
        out = F.scaled_dot_product_attention(q, k, v, seen, is_causal=plain, scale=scale)
        scores = None
    else:
        out, scores = _written_out(node, q, k, v, _seen(node, q, k, mask, past_k, lengths))
    out = out.transpose(1, 2).flatten(2) if joined else out
    return (out, *present, scores)[: node.outputs] if node.outputs > 1 else out


def _apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def _is_triangle(node: Node, q: Tensor, k: Tensor, *others: Tensor | None) -> bool:
    """Whether each query sees as many keys as it has steps before it, and nothing else decides."""
    windows = max(node.get("left_window_size", -1), node.get("right_window_size", -1))
    alone = all(other is None for other in others) and windows < 0 and bool(node.get("is_causal", 0))
    return alone and bool(q.shape[-2] == k.shape[-2])


def _seen(
    node: Node, q: Tensor, k: Tensor, mask: Tensor | None, past: Tensor | None, lengths: Tensor | None
) -> Tensor | None:
    """Which keys each query sees, or what is added to the scores; None for all of them."""
    rows, columns = q.shape[-2], k.shape[-2]
    keys = torch.arange(columns)
    before: Any = 0 if past is None else past.shape[2]  # how many keys come before those of the queries
    if lengths is not None:
        before = lengths.reshape(-1, 1, 1, 1) - rows
    ahead = keys - torch.arange(rows).unsqueeze(1) - before  # how far a key lies ahead of a query
    left, right = node.get("left_window_size", -1), node.get("right_window_size", -1)
    parts = [ahead <= 0] if node.get("is_causal", 0) else []
    parts += [ahead >= -left] if left >= 0 else []
    parts += [ahead <= right] if right >= 0 else []
    parts += [keys < lengths.reshape(-1, 1, 1, 1)] if lengths is not None else []
    if mask is not None:
        short, whole = columns - mask.shape[-1], mask.dtype == torch.bool
        if not isinstance(short, int) or short > 0:
            mask = F.pad(mask, (0, short), value=False if whole else float("-inf"))
        parts += [mask] if whole else []
    seen = None
    for part in parts:
        seen = part if seen is None else seen & part
    if mask is None or mask.dtype == torch.bool:
        return seen
    return mask if seen is None else torch.where(seen, mask, float("-inf"))


def _written_out(node: Node, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """The attention, and what the node wants to know of its scores: as they are, capped, masked, or their softmax."""
    root = (q.shape[-1] ** -0.5 if node.get("scale") is None else node.get("scale")) ** 0.5
    mode, cap = node.get("qk_matmul_output_mode", 0), node.get("softcap", 0.0)
    found = [(q * root) @ (k * root).transpose(-1, -2)]
    found.append(torch.tanh(found[0] / cap) * cap if cap else found[0])
    masked = found[1]
    if seen is not None:
        masked = torch.where(seen, masked, float("-inf")) if seen.dtype == torch.bool else masked + seen
    precise = node.get("softmax_precision")
    weights = torch.softmax(masked if precise is None else masked.to(dtype_of(precise)), -1).to(q.dtype)
    if seen is not None:  # a query that sees no key gets nothing
        some = seen if seen.dtype == torch.bool else seen > float("-inf")
        weights = torch.where(some.any(-1, keepdim=True), weights, 0.0)
    return weights @ v, (*found, masked, weights)[mode]


_FUNCTIONS: dict[
    str, tuple[Any, tuple[float, ...]]
] = {  # of x, then of alpha and beta, with what they are where not given
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (lambda x, a: F.elu(x, a), (1.0,)),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, a: F.leaky_relu(x, a), (0.01,)),
    "relu": (torch.relu, ()),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)),
    "sigmoid": (torch.sigmoid, ()),
    "softplus": (F.softplus, ()),
    "softsign": (F.softsign, ()),
    "tanh": (torch.tanh, ()),
    "thresholdedrelu": (lambda x, a: torch.where(x > a, x, torch.zeros_like(x)), (1.0,)),
}
_USUAL = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def _activations(node: Node, kind: str, directions: int) -> list[list[Any]]:
    """The functions of each direction; alphas and betas are given in order to those that take them."""
    names = [str(a).lower() for a in node.get("activations") or []] or _USUAL[kind] * directions
    if any(name not in _FUNCTIONS for name in names) or len(names) != len(_USUAL[kind]) * directions:
        raise OnnxError(f"{node.kind} {node.name!r}: activations {names} are not known; known: {sorted(_FUNCTIONS)}")
    given = [iter(node.get(f"activation_{which}") or ()) for which in ("alpha", "beta")]
    found = []
    for name in names:
        function, usual = _FUNCTIONS[name]
        params = [next(values, value) for values, value in zip(given, usual)]
        found.append(lambda x, function=function, params=params: function(x, *params))
    each = len(_USUAL[kind])
    return [found[i : i + each] for i in range(0, len(found), each)]


@imports("LSTM", "GRU", "RNN")
def recurrent(
    node: Node, x: Tensor, w: Tensor, r: Tensor, bias: Any = None, lengths: Any = None, h: Any = None, c: Any = None,
    peepholes: Any = None, *, linear: Any = F.linear
) -> Any:  # fmt: skip
    """Unrolled over time: x [time, batch, inputs]; Y [time, directions, batch, hidden], then the last states."""
    kind = node.kind if node.kind in _USUAL else "LSTM"
    batch_first = bool(node.get("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        h, c = (v if v is None else v.transpose(0, 1) for v in (h, c))
    functions = _activations(node, kind, w.shape[0])
    start = [s if s is not None else x.new_zeros(w.shape[0], x.shape[1], r.shape[-1]) for s in (h, c)]
    runs = None if lengths is None else torch.arange(x.shape[0]).unsqueeze(1) < lengths
    outputs, lasts = [], []
    for d in range(w.shape[0]):
        backward = node.get("direction", "forward") == "reverse" or d == 1
        b = x.new_zeros(2 * w.shape[1]) if bias is None else bias[d]
        cell = _Cell(node, kind, functions[d], r[d], b.chunk(2)[1], None if peepholes is None else peepholes[d], linear)
        given = linear(_turned(x, lengths) if backward else x, w[d], b.chunk(2)[0])
        series, last = _unroll(cell, given, [s[d] for s in start], runs)
        outputs.append(_turned(series, lengths) if backward else series)
        lasts.append(last[: 2 if kind == "LSTM" else 1])
    y, *states = [torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*lasts))]
    if batch_first:
        y, states = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in states]
    return tuple([y, *states][: node.outputs]) if node.outputs > 1 else y


def _turned(x: Tensor, lengths: Tensor | None) -> Tensor:
    """A series backward in time, each one of the batch within its own length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0]).unsqueeze(1)
    return x[torch.where(steps < lengths, lengths - 1 - steps, steps).long(), torch.arange(x.shape[1])]


def _unroll(cell: _Cell, given: Tensor, state: list[Tensor], runs: Tensor | None) -> Any:
    series = []
    for t in range(given.shape[0]):
        new = cell.step(given[t], *state)
        out = new[0]
        if runs is not None:  # what has ended keeps its state and gives zeros
            on = runs[t].unsqueeze(1)
            new = [torch.where(on, n, s) for n, s in zip(new, state)]
            out = torch.where(on, out, torch.zeros_like(out))
        state = new
        series.append(out)
    return torch.stack(series), state


@dataclass
class _Cell:
    """One direction of a recurrence; `step` takes the input's part of the sums and the state to the next state."""

    node: Node
    kind: str
    functions: list[Any]
    r: Tensor
    bias: Tensor
    peepholes: Tensor | None
    linear: Any

    def step(self, given: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        f, *others = self.functions
        if self.kind == "RNN":
            return [f(self._clipped(given + self.linear(h, self.r, self.bias))), c]
        return [self._gru(given, h, f, *others), c] if self.kind == "GRU" else self._lstm(given, h, c, f, *others)

    def _clipped(self, x: Tensor) -> Tensor:
        edge = self.node.get("clip")
        return x if not edge else torch.clamp(x, -edge, edge)

    def _lstm(self, given: Tensor, h: Tensor, c: Tensor, f: Any, g: Any, last: Any) -> list[Tensor]:
        put, out, forget, new = (given + self.linear(h, self.r, self.bias)).chunk(4, -1)
        p = None if self.peepholes is None else self.peepholes.chunk(3)
        gate = f(self._clipped(put if p is None else put + p[0] * c))
        keep = (
            1 - gate
            if self.node.get("input_forget", 0)
            else f(self._clipped(forget if p is None else forget + p[2] * c))
        )
        c = keep * c + gate * g(self._clipped(new))
        return [f(self._clipped(out if p is None else out + p[1] * c)) * last(c), c]

    def _gru(self, given: Tensor, h: Tensor, f: Any, g: Any) -> Tensor:
        (z, reset, new), parts, biases = given.chunk(3, -1), self.r.chunk(3), self.bias.chunk(3)
        z = f(self._clipped(z + self.linear(h, parts[0], biases[0])))
        reset = f(self._clipped(reset + self.linear(h, parts[1], biases[1])))
        if self.node.get("linear_before_reset", 0):
            new = new + reset * self.linear(h, parts[2], biases[2])
        else:
            new = new + self.linear(reset * h, parts[2], biases[2])
        return (1 - z) * g(self._clipped(new)) + z * h
