"""The steps of a recurrent layer as one operation (`loops`), whatever their number.

A layer's product with the input, for all steps at once, is an operation like any other; one more runs the steps. Backward,
all operations of a cell but its product are elementwise. So how much a signal of 1 at a step's state makes at its gates and
at the state before is one number for each entry (a *slope*), and does not depend on the signal: slopes are worked out for
many steps at once. Then `walk` goes through the steps, with one product for each. Where there is a C compiler, one loop does
all of a step but its product (`recurrent_loops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["CELLS", "Gates", "Slopes", "gradient_slopes", "run_steps", "walk"]


def _lstm(x: Tensor, z: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (z + x).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c


def _gru(x: Tensor, z: Tensor, h: Tensor) -> tuple[Tensor]:
    (xr, xu, xn), (zr, zu, zn) = x.chunk(3, -1), z.chunk(3, -1)
    reset, update = (zr + xr).sigmoid(), (zu + xu).sigmoid()
    new = (xn + zn * reset).tanh()
    return ((h - new) * update + new,)


def _tanh(x: Tensor, z: Tensor, h: Tensor) -> tuple[Tensor]:
    return ((z + x).tanh(),)


def _relu(x: Tensor, z: Tensor, h: Tensor) -> tuple[Tensor]:
    return ((z + x).relu(),)


# What a step makes of its share of the input's product, of the product with the state before, and of that state.
CELLS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"lstm": _lstm, "gru": _gru, "tanh": _tanh, "relu": _relu}

_BLOCK = 1 << 17  # entries of the gates that are worked on at once, so that they stay in the processor's cache


def run_steps(
    cell: str, x: Tensor, state: Sequence[Tensor], w: Tensor, b: Tensor | None
) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """The states after each step, [batch, width] each, and its product of w with the state before.

    Args:
        x: the product of the input with its weights, [steps, batch, gates * width].
        state: h, and c of an LSTM, before the first step: [batch, width].
        w, b: of the product with h: [gates * width, width], [gates * width].
    """
    found = []
    for step in x.unbind(0):
        z = linear(state[0] if state[0].dtype == w.dtype else state[0].to(w.dtype), w, b)
        state = CELLS[cell](step, z, *state)
        found.append((state, z))
    return found


Gates = list["Tensor | None"]  # one for each gate of a cell, [steps, batch, width]; None where nothing passes


class Slopes(NamedTuple):
    """What a signal of 1 at a step's h or c makes elsewhere, [steps, batch, width] each; None where nothing passes.

    Attributes:
        c_h: at the same step's c, of h. The others of h leave out what goes through c.
        x_h, x_c: at the input's product, by gate.
        z_h, z_c: at the product with the state before; None where that is `z_x` times what is at the input's product.
        z_x: [steps, batch, gates * width]; None for 1.
        h_h, h_c, c_c: at the state before, other than through the product.
        scale_h, scale_c: what signals that come to h and c from the next step are multiplied by.
        outer_h, outer_c: the same of those that come from outside.
    """

    c_h: Tensor | None
    x_h: Gates
    x_c: Gates
    z_h: Gates | None
    z_c: Gates | None
    z_x: Tensor | None
    h_h: Tensor | None
    h_c: Tensor | None
    c_c: Tensor | None
    scale_h: Tensor | None = None
    outer_h: Tensor | None = None
    scale_c: Tensor | None = None
    outer_c: Tensor | None = None


def walk(
    slopes: Sequence[Callable[..., Slopes]],
    signals: Sequence[Tensor | None],
    x: Tensor,
    first: Sequence[Tensor],
    states: Sequence[Tensor],
    z: Tensor,
    w: Tensor,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Hand signals back through all steps, from the last to the first.

    Args:
        slopes: of x, z and the states before, for some of the steps, [n, batch, ...]: behind the first, and of the first.
        signals: that come to h and c from outside, [steps, batch, width]; None for none.
        x, first, w: what the steps were given. states, z: what they made.

    Returns:
        The signals at x, at the states before the first step, at w, and at b.
    """
    steps, batch = x.shape[:2]
    s_x, s_w, s_b = torch.empty_like(x), torch.zeros_like(w), w.new_zeros(w.shape[0])
    carried = [x.new_zeros((batch, w.shape[1])) for _ in states]
    size = steps if x.device.type != "cpu" else max(1, _BLOCK // max(1, x[:1].numel()))
    cuts = [*range(steps, 1, -size), 1]
    for end, start in zip(cuts, [*cuts[1:], 0]):
        before = [s[start - 1 : end - 1] if start else f[None] for s, f in zip(states, first)]
        of = slopes[start == 0](x[start:end], z[start:end], *before)
        scaled = zip(signals, (of.outer_h, of.outer_c))
        outer = [None if s is None else s[start:end] if k is None else s[start:end] * k for s, k in scaled]
        rows = _through_block(of, outer, carried, s_x[start:end], w).flatten(0, 1)
        s_w.addmm_(rows.t(), before[0].flatten(0, 1))
        s_b += rows.sum(0)
    return s_x, carried, s_w, s_b


def _through_block(of: Slopes, outer: Sequence[Tensor | None], carried: list[Tensor], s_x: Tensor, w: Tensor) -> Tensor:
    """The signals at z of some steps; those at x are put in `s_x`, what comes to the state before them in `carried`."""
    steps, width = len(s_x), w.shape[1]
    same = of.z_h is None and of.z_x is None
    s_z = s_x if same else torch.empty_like(s_x)
    at_x, at_z = _by_gate(of.x_h, of.x_c, s_x, width), _by_gate(of.z_h or [], of.z_c or [], s_z, width)
    c_h, h_h, h_c, c_c, z_x, scale_h, scale_c, outer_h, outer_c = (
        None if k is None else k.unbind(0)
        for k in (of.c_h, of.h_h, of.h_c, of.c_c, of.z_x, of.scale_h, of.scale_c, outer[0], outer[-1])
    )
    xs, zs = s_x.unbind(0), s_z.unbind(0)
    h, *rest = carried
    c: Any = None
    for t in reversed(range(steps)):
        h = h if scale_h is None else h * scale_h[t]
        h = h if outer_h is None else h + outer_h[t]
        if rest:
            c = rest[0] if scale_c is None else rest[0] * scale_c[t]
            c = c if outer_c is None else c + outer_c[t]
            c = c if c_h is None else torch.addcmul(c, c_h[t], h)
        for out, of_h, of_c in (*at_x, *at_z):
            _put(out[t], None if of_h is None else of_h[t], h, None if of_c is None else of_c[t], c)
        if z_x is not None:
            torch.mul(xs[t], z_x[t], out=zs[t])
        before = zs[t] @ w
        if h_h is not None:
            before.addcmul_(h_h[t], h)
        if rest:
            if h_c is not None:
                before.addcmul_(h_c[t], c)
            rest[0] = torch.zeros_like(h) if c_c is None else c_c[t] * c
        h = before
    carried[:] = h, *rest
    return s_z


def _by_gate(of_h: Gates, of_c: Gates, s: Tensor, width: int) -> list[tuple[Any, Any, Any]]:
    """For each gate: where its signal goes, and the slopes of h and c, all by step."""
    places = s.unflatten(-1, (-1, width)).unbind(-2)
    rows = zip(places, of_h, of_c or [None] * len(of_h))
    return [(p.unbind(0), *(None if k is None else k.unbind(0) for k in of)) for p, *of in rows]  # type: ignore[misc]


def _put(out: Tensor, of_h: Tensor | None, h: Tensor, of_c: Tensor | None, c: Any) -> None:
    """Write `of_h * h + of_c * c`."""
    if of_h is not None:
        torch.mul(of_h, h, out=out)
        if of_c is not None:
            out.addcmul_(of_c, c)
    elif of_c is not None:
        torch.mul(of_c, c, out=out)
    else:
        out.zero_()


def gradient_slopes(cell: str, x: Tensor, z: Tensor, *before: Tensor) -> Slopes:
    """The derivatives of a cell, by autograd."""

    def gates(k: Tensor) -> Gates:
        return list(k.split(before[0].shape[-1], -1))

    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (x, z, *before)]
        h, *rest = CELLS[cell](*leaves)
        if not rest:
            x_h, z_h, h_h = _derivatives(h, leaves)
            return Slopes(None, gates(x_h), [], gates(z_h), None, None, h_h, None, None)
        (c,) = rest
        x_c, _, h_c, c_c = _derivatives(c, leaves)
        at_c: list[Tensor] = []
        c.register_hook(lambda g: [at_c.append(g), torch.zeros_like(g)][1])  # type: ignore[func-returns-value]  # counted there
        x_h, _, h_h, _ = _derivatives(h, leaves)
    return Slopes(at_c[0], gates(x_h), gates(x_c), None, None, None, h_h, h_c, c_c)


def _derivatives(out: Tensor, of: Sequence[Tensor]) -> Any:
    return torch.autograd.grad(out, of, torch.ones_like(out), retain_graph=True, allow_unused=True)
