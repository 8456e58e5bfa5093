"""Recurrent layers as the operations they are made of: their steps one by one, or, where asked for, as one operation.

torch's own way leaves out the dropout between layers, and takes a kernel that has no parts where nothing requires a gradient.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.nn.functional import linear

from ..rules.loops import LSTM
from ..rules.loops import RECURRENT as STEPS
from ..rules.recurrent import CELLS, run_steps

__all__ = ["FUSED_CELLS", "RECURRENT", "are_steps_one", "autocast_noted", "decomposition_of", "steps_as_one"]

_CELLS = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "tanh", "rnn_relu": "relu"}
RECURRENT = {getattr(getattr(torch.ops.aten, name), overload) for name in _CELLS for overload in ("data", "input")}


class _Local(threading.local):
    wanted: Callable[[], bool] | None = None
    casts: Mapping[str, torch.dtype] = {}


_local = _Local()


class steps_as_one:
    """Let recurrent layers that are taken apart in this thread run their steps by one operation.

    Args:
        wanted: whether they are to; asked only where there is such a layer.
    """

    def __init__(self, wanted: Callable[[], bool] = lambda: True) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        _let_shapes_follow()
        self._before = _local.wanted
        _local.wanted = self._wanted

    def __exit__(self, *raised: Any) -> None:
        _local.wanted = self._before


@contextlib.contextmanager
def autocast_noted() -> Iterator[None]:
    """Have recurrent layers that are taken apart in this thread cast as the autocast that is on; where they are, it is off."""
    _local.casts = {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}
    try:
        yield
    finally:
        _local.casts = {}


def _noted(x: Tensor) -> torch.dtype | None:
    """The type that the noted autocast casts products of x to."""
    dtype: torch.dtype | None = _local.casts.get(x.device.type)
    return dtype if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else None


def are_steps_one() -> bool:
    """Whether the steps of recurrent layers that are taken apart in this thread are to be one operation."""
    return _local.wanted is not None and _local.wanted()


@functools.cache
def _let_shapes_follow() -> None:
    """Have torch work out the shapes that a layer returns by these parts, which leave the number of steps open."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    for op in RECURRENT:
        if op._overloadname == "input":
            op.py_kernels[key] = functools.partial(_ours_or, op.py_kernels[key], decomposition_of(op))
            op._dispatch_cache.clear()


def _ours_or(usual: Callable[..., Any], ours: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    run = ours if are_steps_one() and not kwargs else usual
    return run(*args, **kwargs)


def _fused_lstm(
    x: Tensor, z: Tensor, c: Tensor, b_x: Tensor | None = None, b: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a GPU runs of an LSTM's step as one kernel, behind the products; its third result is for its own derivative."""
    x, z = _plus(x, b_x), _plus(z, b)
    return *CELLS["lstm"](x, z, c, c), torch.empty_like(x)  # type: ignore[return-value]


def _fused_gru(
    x: Tensor, z: Tensor, h: Tensor, b_x: Tensor | None = None, b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same of a GRU's step."""
    return *CELLS["gru"](_plus(x, b_x), _plus(z, b), h), h.new_empty(h.shape[0], 5 * h.shape[1])  # type: ignore[return-value]


def _plus(x: Tensor, b: Tensor | None) -> Tensor:
    return x if b is None else x + b


FUSED_CELLS: dict[OpOverload, Callable[..., Any]] = {
    torch.ops.aten._thnn_fused_lstm_cell.default: _fused_lstm,
    torch.ops.aten._thnn_fused_gru_cell.default: _fused_gru,
}


def decomposition_of(op: OpOverload) -> Callable[..., Any]:
    """The function that stands for a recurrent operation."""
    name, packed = op._schema.name.split("::")[1], op._overloadname == "data"
    return _packed(op) if packed else _Layers(op, _CELLS[name])


class _Layers:
    """A stack of recurrent layers, given as one operation's arguments."""

    def __init__(self, op: OpOverload, cell: str) -> None:
        self.op, self.cell = op, cell
        self.names = [a.name for a in op._schema.arguments]

    def __call__(self, *args: Any) -> Any:
        given = dict(zip(self.names, args))
        states = list(given["hx"]) if self.cell == "lstm" else [given["hx"]]
        if self.cell == "lstm" and states[0].shape[2] != states[1].shape[2]:
            return _one_by_one(self.op, given)  # its states are projected
        x: Tensor = given["input"]
        batch_first = given["batch_first"]
        n = 4 if given["has_biases"] else 2
        params = iter(zip(*[iter(given["params"])] * n))
        hidden = iter(zip(*(s.unbind(0) for s in states)))
        ends: list[tuple[Tensor, ...]] = []
        for i in range(given["num_layers"]):
            if i and given["train"] and given["dropout"]:
                x = torch.dropout(x, given["dropout"], True)
            ways = [self.layer(x, next(hidden), next(params), batch_first and i == 0)]
            if given["bidirectional"]:
                out, end = self.layer(x, next(hidden), next(params), batch_first and i == 0, backwards=True)
                ways.append((out.flip(0), end))
            x = torch.cat([out for out, _ in ways], -1) if len(ways) > 1 else ways[0][0]
            ends += [end for _, end in ways]
        x = (x.transpose(0, 1) if batch_first else x).clone(memory_format=torch.contiguous_format)  # may be written to
        return (x, *(torch.stack(parts) for parts in zip(*ends)))

    def layer(
        self, x: Tensor, state: Sequence[Tensor], params: Sequence[Tensor], batch_first: bool, backwards: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states h of all steps, in the order in which they run, and the last state."""
        (w_x, w), (b_x, b) = params[:2], params[2:] or (None, None)
        x = x.transpose(0, 1).contiguous() if batch_first else x
        x = x.flip(0) if backwards else x
        dtype = _noted(x)
        if dtype is not None:
            x, w_x, w = (t.to(dtype) for t in (x, w_x, w))
            b_x, b = (t if t is None else t.to(dtype) for t in (b_x, b))
        x = linear(x, w_x, b_x)
        if dtype is not None or not are_steps_one() or torch.is_autocast_enabled(x.device.type):
            found = run_steps(self.cell, x, state, w, b)
            return torch.stack([made[0] for made, _ in found]), found[-1][0]
        made = LSTM(x, *state, w, b)[:2] if self.cell == "lstm" else STEPS(x, *state, w, b, self.cell)[:1]
        return made[0], tuple(end[-1] for end in made)


def _packed(op: OpOverload) -> Callable[..., Any]:
    """Sequences of several lengths: as torch takes them apart, but with the dropout between layers."""
    names = [a.name for a in op._schema.arguments]
    return lambda *args: _one_by_one(op, dict(zip(names, args)))


def _one_by_one(op: OpOverload, given: dict[str, Any]) -> Any:
    """Layer by layer, each as torch takes it apart."""
    whole, packed = decomposition_table[op], op._overloadname == "data"
    layers, p, first = given["num_layers"], given["dropout"], next(iter(given))
    dtype = _noted(given[first])
    if dtype is not None:
        given |= {first: given[first].to(dtype), "params": [w.to(dtype) for w in given["params"]]}
    if layers == 1 or p == 0 or not given["train"]:
        with _without_whole_kernels():
            return whole(*given.values())
    several = isinstance(given["hx"], list | tuple)
    states = given["hx"] if several else [given["hx"]]
    x: Tensor = given[first]
    turned = not packed and given["batch_first"]
    x = x.transpose(0, 1) if turned else x
    params = given["params"]
    per_layer, ways = len(params) // layers, 1 + bool(given["bidirectional"])
    ends: list[Any] = []
    for i in range(layers):
        x = torch.dropout(x, p, True) if i else x
        hx = [h[i * ways : (i + 1) * ways] for h in states]
        one = given | {
            first: x,
            "hx": hx if several else hx[0],
            "params": params[i * per_layer : (i + 1) * per_layer],
            "num_layers": 1,
            "dropout": 0.0,
        }
        if not packed:
            one["batch_first"] = False
        with _without_whole_kernels():
            x, *end = whole(*one.values())
        ends.append(end)
    return (x.transpose(0, 1) if turned else x, *(torch.cat(parts) for parts in zip(*ends)))


@contextlib.contextmanager
def _without_whole_kernels() -> Iterator[None]:
    """torch's decomposition of an LSTM takes a kernel without parts where this is on."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)
