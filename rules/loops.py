"""The operations `torch.ops.lfpgraph_steps`: the steps of a recurrent layer (see `recurrent`).

The rules given here are the true gradient; `engine.recurrent` has a composite's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import GENERAL, rule

from .recurrent import gradient_slopes, run_steps, walk
from .recurrent_loops import is_worth_a_loop, loop_of_cell, on_device_of, run_in_loop
from .views import vjp

__all__ = [
    "ADDED",
    "LSTM",
    "RECURRENT",
    "added_over",
    "added_to_steps",
    "answer_instead",
    "cell_of",
    "like_feedback",
    "on_a_tape",
]

_library = torch.library.Library("lfpgraph_steps", "DEF")
_library.define("lstm(Tensor x, Tensor h, Tensor c, Tensor w, Tensor? b) -> (Tensor, Tensor, Tensor)")
_library.define("recurrent(Tensor x, Tensor h, Tensor w, Tensor? b, str cell) -> (Tensor, Tensor)")
_library.define("added(Tensor x, Tensor[] state, Tensor w, Tensor? b, str cell) -> Tensor[]")
_local = threading.local()


def _run(cell: str, x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
    """The states after all steps, and the products with w: [steps, batch, ...] each."""
    return _made(cell, x, state, w, b, _shapes(x, *state), adds=False)


def _made(
    cell: str, x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None, made: tuple[Tensor, ...], adds: bool
) -> tuple[Tensor, ...]:
    loop = loop_of_cell(cell, x.dtype, x.device, adds) if is_worth_a_loop(x) else None
    if loop is not None:
        with on_device_of(x):
            run_in_loop(loop, x, state, w, b, made)
        return made
    for t, (states, z) in enumerate(run_steps(cell, x, state, w, b)):
        for whole, value in zip(made, (*states, z + x[t] if adds else z)):
            whole[t] = value
    return made


def _added(x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None, cell: str) -> list[Tensor]:
    return list(_made(cell, x, state, w, b, _shapes(x, *state), adds=True))


def added_over(x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None, cell: str) -> list[Tensor]:
    """As `ADDED`, but the sums are written over x, which nobody may read behind it. Without autograd."""
    states = _shapes(x, *state)[:-1]
    return list(_made(cell, x, state, w, b, (*states, x if x.stride(-1) == 1 else torch.empty_like(x)), adds=True))


def _shapes(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    return *(x.new_empty((*x.shape[:2], s.shape[-1])) for s in state), x.new_empty(x.shape)


_library.impl("lstm", lambda x, h, c, w, b: _run("lstm", x, (h, c), w, b), "CompositeExplicitAutograd")
_library.impl("recurrent", lambda x, h, w, b, cell: _run(cell, x, (h,), w, b), "CompositeExplicitAutograd")
torch.library.register_fake("lfpgraph_steps::lstm", lambda x, h, c, w, b: _shapes(x, h, c), lib=_library)
torch.library.register_fake("lfpgraph_steps::recurrent", lambda x, h, w, b, cell: _shapes(x, h), lib=_library)
_library.impl("added", _added, "CompositeExplicitAutograd")
torch.library.register_fake("lfpgraph_steps::added", lambda x, h, w, b, cell: list(_shapes(x, *h)), lib=_library)
_library.define(
    "backward(Tensor?[] gs, Tensor x, Tensor[] first, Tensor[] states, Tensor z, Tensor w, str cell) -> Tensor[]"
)
_library.impl("backward", lambda *args: _backward(*args), "CompositeExplicitAutograd")
torch.library.register_fake("lfpgraph_steps::backward", lambda gs, *args: like_feedback(*args[:5]), lib=_library)
_BACKWARD = torch.ops.lfpgraph_steps.backward.default
ADDED = torch.ops.lfpgraph_steps.added.default  # made by `engine.recurrent.keep_sums` alone
LSTM = torch.ops.lfpgraph_steps.lstm.default
RECURRENT = torch.ops.lfpgraph_steps.recurrent.default


def cell_of(op: Any, args: Sequence[Any]) -> str:
    """The name of the cell that one of the operations runs."""
    return "lstm" if op is LSTM else args[4]


def added_to_steps(op: Any, args: Sequence[Any]) -> list[Any]:
    """Of the arguments of one of the operations those that only add something to its first step, where they are parameters."""
    _, h, *_, b = args if op is LSTM else args[:4]
    return [b] if cell_of(op, args) == "gru" else [b, h]


def on_a_tape() -> Any:
    """Let autograd see what runs in an operation's kernel, where it may be switched off."""
    return torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)


def answer_instead(z: Tensor, answers: Sequence[Tensor | None]) -> None:
    """Let the backward pass that comes next in this thread, if it is that of the run that made z, return these answers."""
    _local.answer = z.data_ptr(), answers


def _backward(
    gs: list[Tensor | None], x: Tensor, first: list[Tensor], states: list[Tensor], z: Tensor, w: Tensor, cell: str
) -> list[Tensor]:
    with on_a_tape():
        slopes = [functools.partial(gradient_slopes, cell)] * 2
        s_x, ends, s_w, s_b = walk(slopes, gs, x, first, states, z, w)
    return [s_x, *ends, s_w, s_b]


def like_feedback(x: Tensor, first: list[Tensor], states: Any, z: Any, w: Tensor) -> list[Tensor]:
    """Tensors of the shapes that `walk` returns."""
    return [torch.empty_like(t) for t in (x, *first, w)] + [w.new_empty(w.shape[0])]


def _gradient(cell: str, ctx: Any, gs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of x, of the states before the first step, of w and of b; None of all where no signal arrived."""
    if all(g is None for g in gs):
        return [None] * (len(gs) + 3)
    x, w, b, z, *rest = ctx.saved_tensors
    made_by, answers = _local.__dict__.pop("answer", (None, None))
    if made_by is not None and made_by == z.data_ptr() and not torch.is_grad_enabled():
        return list(answers)
    first, states = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    if not torch.is_grad_enabled():
        return list(_BACKWARD(list(gs), x, first, states, z, w, cell))
    made = [states for states, _ in run_steps(cell, x, first, w, b)]  # for a second derivative, on torch's own tape
    pairs = [(torch.stack([end[i] for end in made]), g) for i, g in enumerate(gs) if g is not None]
    given = (x, *first, w, b)
    wanted = [t for t in given if t is not None and t.requires_grad]
    outs, signals = zip(*pairs)
    found = iter(torch.autograd.grad(outs, wanted, signals, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in given]


def _save_lstm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h, c, w, b = inputs
    hs, cs, z = output  # no signal is ever given to z, since nobody reads it
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, b, z, h, c, hs, cs)


def _lstm_backward(ctx: Any, *gs: Tensor | None) -> tuple[Tensor | None, ...]:
    x, h, c, w, b = _gradient("lstm", ctx, gs[:2])
    return x, h, c, w, b if ctx.saved_tensors[2] is not None else None


def _save_recurrent(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h, w, b, ctx.cell = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, b, output[1], h, output[0])


def _recurrent_backward(ctx: Any, *gs: Tensor | None) -> tuple[Tensor | None, ...]:
    x, h, w, b = _gradient(ctx.cell, ctx, gs[:1])
    return x, h, w, b if ctx.saved_tensors[2] is not None else None, None


torch.library.register_autograd("lfpgraph_steps::lstm", _lstm_backward, setup_context=_save_lstm, lib=_library)
torch.library.register_autograd(
    "lfpgraph_steps::recurrent", _recurrent_backward, setup_context=_save_recurrent, lib=_library
)
rule(LSTM, RECURRENT, family=GENERAL, source="gradient; a composite's own rules are made by engine.recurrent")(vjp)
