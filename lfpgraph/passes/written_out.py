"""The steps of a recurrent layer (`rules.loops`) and norms written out in plain operations, for graphs that are exported.

As little as can be is in each step: what a signal of 1 makes (its slopes) is worked out for all steps at once, and the signals
at the weights are one product over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..rules.recurrent import CELLS, Gates, Slopes

__all__ = ["batch_norm_written_out", "group_norm_written_out", "run_written_out", "walk_written_out"]


def run_written_out(cell: str, x: Tensor, first: Sequence[Tensor], w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
    """The states after each step, and its product with w, [steps, batch, ...] each, as `rules.recurrent.run_steps`."""
    at_once = x + b if b is not None and cell != "gru" else None  # of a GRU, the bias is added to one of three products
    of, state, made = w.t().unsqueeze(0), [s.unsqueeze(0) for s in first], []
    for step in _steps(x if at_once is None else at_once, len(x)):
        product = torch.bmm(state[0], of)
        state = list(CELLS[cell](step, product if b is None or at_once is not None else product + b, *state))
        made.append((*state, product))
    *states, products = (torch.cat(list(values)) for values in zip(*made))
    return *states, products if b is None else products + b


def _steps(x: Tensor | None, count: Any) -> Any:
    return [None] * int(count) if x is None else x.split([1] * int(count))


def _plus(a: Any, b: Any) -> Any:
    return a if b is None else a + b


def _times(a: Any, b: Any) -> Any:
    return a if b is None else a * b


def walk_written_out(
    programs: Sequence[Callable[..., Any]], signals: Sequence[Tensor | None], x: Tensor, first: Sequence[Tensor],
    states: Sequence[Tensor], z: Tensor, w: Tensor,
) -> list[Tensor]:  # fmt: skip
    """What `rules.recurrent.walk` returns, of the same arguments."""
    count = int(len(x))
    later, begin = programs
    before = [torch.cat([f.unsqueeze(0), s[: count - 1]]) for f, s in zip(first, states)]
    carried = [torch.zeros_like(f).unsqueeze(0) for f in first]
    made: list[tuple[Tensor, Tensor]] = []
    for slopes, start, end in ((later, 1, count), (begin, 0, 1)):
        if start < end:
            rows = [t[start:end].flatten(0, 1) for t in (x, z, *before)]
            shape = (end - start, x.shape[1], -1)
            of = Slopes(*tree_map(lambda k, shape=shape: k if k is None else k.reshape(shape), _scaled(slopes(*rows))))
            outer = [None if s is None else s[start:end] for s in signals]
            made.append(_through(of, outer, carried, w.unsqueeze(0), end - start))
    s_x, s_z = (torch.cat(list(reversed(parts))) for parts in zip(*made))
    s_z = s_z.flatten(0, 1)
    return [s_x, *(s.squeeze(0) for s in carried), s_z.t() @ before[0].flatten(0, 1), s_z.sum(0)]


def _scaled(found: Sequence[Any]) -> Slopes:
    """Slopes of h as it was before it was scaled, where all that comes to it is scaled by the same: none need do it by step."""
    of = Slopes(*found)
    if of.scale_h is None or of.scale_h is not of.outer_h:
        return of
    names = ("c_h", "x_h", "z_h", "h_h")
    scaled = tree_map(lambda k: None if k is None else k * of.scale_h, [getattr(of, name) for name in names])
    return of._replace(**dict(zip(names, scaled)), scale_h=None, outer_h=None)


def _through(
    of: Slopes, outer: Sequence[Tensor | None], carried: list[Tensor], w: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Signals at x and at the product of some steps; what comes to the state before them is put in `carried`."""
    at_x = _Gates(of.x_h, of.x_c)
    at_z = at_x if of.z_h is None else _Gates(of.z_h, of.z_c or [])
    slopes = [_steps(_times(k, of.z_x), count) for k in at_z.slopes]
    scaled = [s if s is None else _times(s, k) for s, k in zip(outer, (of.outer_h, of.outer_c))]
    scale_c, c_c = of.scale_c, of.c_c
    if carried[1:] and scale_c is not None and c_c is not None:  # all but the last step's in those of the step behind
        carried[1] = carried[1] * scale_c[-1:]
        c_c = torch.cat([c_c[:1], c_c[1:] * scale_c[:-1]])
        scale_c = None
    given = (of.scale_h, scale_c, of.c_h, of.h_h, of.h_c, c_c, scaled[0], scaled[-1])
    ends, products = [], []
    for *at, (scale_h, scale_c, c_h, h_h, h_c, c_c, outer_h, outer_c) in reversed(
        list(zip(*slopes, zip(*(_steps(k, count) for k in given))))
    ):
        h, *rest = carried
        h = _plus(_times(h, scale_h), outer_h)
        rest = [_plus(_times(c, scale_c), outer_c) for c in rest]
        rest = [_plus(c, None if c_h is None else c_h * h) for c in rest]
        ends.append((h, *rest))
        products.append(at_z(at, h, *rest))
        passed = torch.bmm(products[-1], w)
        for slope, s in zip((h_h, h_c), (h, *rest)):
            passed = _plus(passed, None if slope is None else slope * s)
        carried[:] = passed, *(torch.zeros_like(c) if c_c is None else c_c * c for c in rest)
    together = [torch.cat(list(reversed(values))) for values in zip(*ends)]
    return at_x(at_x.slopes, *together), torch.cat(products[::-1])


class _Gates:
    """The slopes at all gates side by side: of h or of c, and where some have both, those of c besides."""

    def __init__(self, of_h: Gates, of_c: Gates) -> None:
        pairs = list(zip(of_h, of_c or [None] * len(of_h)))
        zeros = torch.zeros_like(next(k for pair in pairs for k in pair if k is not None))
        self.of_c = [a is None for a, _ in pairs]
        ways = [[b if a is None else a for a, b in pairs], [None if a is None else b for a, b in pairs]]
        wanted = ways if any(k is not None for k in ways[1]) else ways[:1]
        self.slopes = [torch.cat([zeros if k is None else k for k in way], -1) for way in wanted]

    def __call__(self, slopes: Sequence[Tensor], h: Tensor, *c: Tensor) -> Tensor:
        """The signals at all gates, of those at h and c."""
        found = slopes[0] * torch.cat([c[0] if c and of_c else h for of_c in self.of_c], -1)
        return found if len(slopes) == 1 else found + slopes[1] * torch.cat([c[0]] * len(self.of_c), -1)


def batch_norm_written_out(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """Output, mean and inverse deviation of the batch, and the new running statistics; centred once for all that needs it."""
    axes, n = [0, *range(2, x.dim())], x.numel() / x.shape[1]

    def by_channel(t: Tensor) -> Tensor:  # as torch's backward writes it, so that equal nodes become one
        for axis in axes:
            t = t.unsqueeze(axis)
        return t

    own = x.mean(axes)
    centred = x - by_channel(own)
    variance = (centred * centred).mean(axes)
    scale = invstd = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = invstd * weight
    out = centred * by_channel(scale)
    out = out if bias is None else out + by_channel(bias)
    new_var = var * (1 - momentum) + variance * (n / (n - 1)) * momentum
    return out, own, invstd, mean * (1 - momentum) + own * momentum, new_var


def group_norm_written_out(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, c: Any, places: Any, groups: int, eps: float
) -> tuple[Tensor, ...]:
    """Output, and mean and inverse deviation [n, groups]; torch's own decomposition reads memory by strides."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    invstd = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    out = (centred * invstd).reshape(x.shape)
    channels = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        out = out * weight.reshape(channels)
    if bias is not None:
        out = out + bias.reshape(channels)
    return out, mean.squeeze(-1), invstd.squeeze(-1)
