"""The steps of a recurrent layer as loops in C (`lfpgraph.native`), all but each product. The numbers are `recurrent`'s.

On a GPU, all of a step but its product is one kernel.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfpgraph.native.loops import Loop, Running, loop_of_formula, place
from lfpgraph.native.matmul import mm_into, times
from lfpgraph.native.products import Product, Weights, has_one_thread, is_small
from lfpgraph.native.steps import StepKernel

from .recurrent import CELLS

__all__ = ["is_worth_a_loop", "loop_of_cell", "on_device_of", "run_in_loop", "walk_in_loop"]

_LOOP = 1 << 14  # entries of the gates of all steps, from which on a loop in C is worth the half second of its making
_CPU = torch.device("cpu")
_BLOCK = (
    1 << 20
)  # entries of the gates whose signals are kept until they are multiplied: a few long products, little memory


def is_worth_a_loop(x: Tensor) -> bool:
    """Whether the steps of an input's product are to run as a loop in C, where there is one, or on a GPU as a kernel each."""
    if x.is_cuda:
        return x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and x.numel() >= _LOOP


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """What a loop is to run in: kernels start on the device that is current."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def loop_of_cell(
    cell: str, dtype: torch.dtype, device: torch.device = _CPU, adds: bool = False
) -> Loop | StepKernel | None:
    """A step behind its product: (x, z, states before) -> (states after, z, or z + x if it adds)."""

    def step(x: Any, z: Any, *before: Any) -> tuple[Any, ...]:
        return *CELLS[cell](x, z, *before), z + x if adds else z

    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    return loop_of_formula(step, [gates, gates, *[1] * (2 if cell == "lstm" else 1)], dtype, device)


def run_in_loop(
    loop: Loop | StepKernel, x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None, made: Sequence[Tensor]
) -> None:
    """As `run_steps`, but what comes of it is put in `made`: the states after all steps, and the products with w.

    A loop that adds x to the products may be given x itself for them.
    """
    x, *state = map(_in_rows, (x, *state))
    states, h = made[:-1], state[0]
    if isinstance(loop, StepKernel):
        _run_on_gpu(loop, x, state, w, b, made)
        return
    small = is_small(len(h), w)
    multiply = times(w.t(), b, h)
    product = x.new_empty(x.shape[1:]) if small else multiply(h)
    first, others = (
        loop.on([place(x), place(product), *before, *map(place, made)], *h.shape)
        for before in ([place(s) for s in state], [place(s, -1) for s in states])
    )
    if small:
        b = None if b is None else b.contiguous()
        row = None if b is None else (b.data_ptr(), 0, 0)
        of = Product(w.t(), loop.panel, place(h), row, place(product))
        first.through(of, range(1), ahead=True)
        of.move(place(states[0], -1), row, place(product))
        others.through(of, range(1, len(x)), ahead=True)
        return
    first(0)
    for t, h in enumerate(states[0][:-1].unbind(0), 1):
        product = multiply(h)
        others.give(1, product)
        others(t)


def _run_on_gpu(
    kernel: StepKernel, x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None, made: Sequence[Tensor]
) -> None:
    """The same, where all products are written to one place."""
    states, w, product = made[:-1], w.t(), x.new_empty(x.shape[1:])
    first, others = (
        kernel.on([place(x), place(product), *before, *map(place, made)], *state[0].shape)
        for before in ([place(s) for s in state], [place(s, -1) for s in states])
    )
    run = first
    for t, h in enumerate((state[0], *states[0][:-1].unbind(0))):
        if b is None:
            torch.mm(h, w, out=product)
        else:
            torch.addmm(b, h, w, out=product)
        run(t)
        run = others


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def walk_in_loop(
    loops: Sequence[Loop | StepKernel],
    signals: Sequence[Tensor | None],
    x: Tensor,
    first: Sequence[Tensor],
    states: Sequence[Tensor],
    z: Tensor | None,
    w: Tensor,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """As `walk`.

    Args:
        z: None where x is the sum of both products, which is all that the loops read of them.
        loops: of x, z, the states before, what comes to the states from the next step, and from outside. They make the
            signals at x, at z, and at the states before, other than through the product. Behind the first step, and of it.
    """
    x, *first = map(_in_rows, (x, *first))
    products = [place(x)] if z is None else [place(x), place(z := _in_rows(z))]
    states = [_in_rows(s) for s in states]
    h, *others = [x.new_zeros(first[0].shape) for _ in states]
    outer = [torch.zeros_like(h) if s is None else _in_rows(s) for s in signals]
    on_gpu = isinstance(loops[0], StepKernel)
    steps, twice = len(x), all(loop.twice for loop in loops)  # what comes to x comes to z as well
    small, places = not on_gpu and is_small(len(h), w), (place(first[0]), place(states[0]))
    added_up = Weights(loops[0], w, len(h), steps, places) if small and has_one_thread() else None
    size = steps if on_gpu or twice else min(steps, max(1, _BLOCK // max(1, x[0].numel())))
    if added_up is not None:
        size = -(-size // added_up.steps_at_once) * added_up.steps_at_once
    s_x, rest = torch.empty_like(x), torch.empty_like(h)
    s_z = s_x if twice else x.new_empty((size, *x.shape[1:]))
    rest = h if on_gpu else rest  # each entry is read before it is written
    found: list[tuple[Tensor, Tensor]] = []  # at w and b, of each block of steps
    of = Product(w, loops[0].panel, place(s_z), None, place(h)) if small else None
    multiply = times(w, None, s_z[0])
    for start in reversed(range(0, steps, size)):
        outs = place(s_x), place(s_z, -start), place(rest), *map(place, others)
        signals_at = [*map(place, (h, *others, *outer))]
        running, begun = (
            loop.on([*products, *before, *signals_at, *(out for out, has in zip(outs, loop.has) if has)], *h.shape)
            for loop, before in zip(loops, ([place(s, -1) for s in states], [place(s) for s in first]))
        )
        end = min(start + size, steps)
        if added_up is not None:
            added_up.move(place(s_z, -start))
        parts = range(end - 1, max(start, 1) - 1, -1), range(0, start - 1, -1)
        for run, loop, part in zip((running, begun), loops, parts):
            added = rest if loop.has[2] else None
            if of is not None and isinstance(run, Running):
                of.move(place(s_z, -start), None if added is None else place(added), place(h))
                run.through(of, part, False, added_up)
                continue
            if on_gpu:
                for t in part:
                    run(t)
                    mm_into(h, s_z[t], w, added)
                continue
            for t in part:
                run.give(len(products) + len(states), h)
                run(t)
                h = multiply(s_z[t - start])
                h = h if added is None else h.add_(added)
        if added_up is None:
            before = states[0][start - 1] if start else first[0]
            found.append(_weights(s_z[: end - start], before, states[0][start:end]))
    if added_up is not None:
        found = [(added_up.of_weights, added_up.of_bias)]
    s_w, s_b = (sum(parts[1:], parts[0]) for parts in zip(*found))
    return s_x, [h, *others], s_w, s_b


def _weights(s_z: Tensor, first: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """What the signals of some steps' products make at the weights and the bias.

    Args:
        first, states: the states before the first of the steps, and after each.
    """
    s_w = first.t() @ s_z[0]  # with the smaller factor as the one that is turned
    mm_into(s_w, states[:-1].flatten(0, 1).t(), s_z[1:].flatten(0, 1), s_w)
    return s_w.t().contiguous(), s_z.sum((0, 1))
