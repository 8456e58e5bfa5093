"""The slopes of secants, by which `lfp` goes back through activations and steps, as operations of their own.

As in `kernels`, each formula is written once in torch's operations, which is what exporters, compilers and other devices than a
CPU see. A large tensor on a CPU runs through it in one pass, in C (`native.passes`), where the machine has a compiler.

Static programs have that compiler started when they are prepared. What runs live takes the loops that give the formula's
numbers to the last digit, once they are there, so that when that is changes nothing; an error function is no such loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..kernels import DECOMPOSITIONS, define
from ..native.passes import LEAST, Passes, begin, is_dense, known_passes, passes_of
from ..numerics import call_operation

__all__ = ["OPERATIONS", "comparison_signal", "name_of", "secant_signal", "spread_of"]

aten = torch.ops.aten
_NAMES: dict[Any, str] = {
    (aten.gelu.default, "none"): "gelu",
    (aten.gelu.default, "tanh"): "gelu_tanh",
    (aten.silu.default, "none"): "silu",
}  # of an operation, and its `approximate`
_NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": aten.gelu.default,
    "gelu_tanh": lambda x: aten.gelu.default(x, approximate="tanh"),
    "silu": aten.silu.default,
}


def name_of(node: fx.Node) -> str | None:
    """The name of the function that a node calls, if its secant is an operation here."""
    return _NAMES.get((node.target, node.kwargs.get("approximate", "none"))) if len(node.args) == 1 else None


def spread_of(x: Tensor, most: float) -> Tensor:
    """The spread of x, at most `most`; 1 of one number, or of numbers that are all alike. x: float32 or better."""
    return call_operation(_SPREAD, x, most, kernel=_spread_by_torch)


def comparison_signal(
    s: Tensor, x: Tensor, spread: Tensor, number: float, side: int, widths: tuple[float, ...]
) -> Tensor:
    """s times the slope of a comparison of x with a number, by secants of several widths, each with a weight of one over it.

    A secant rises by one where the number is within its width of x.

    Args:
        side: 1 or -1, as larger or smaller x give one.
        widths: in units of `spread`.
    """
    kernel = partial(_comparison_by_kernel, wait=False)
    return call_operation(_COMPARISON, s, x, spread, number, side, widths, kernel=kernel)


def secant_signal(s: Tensor, x: Tensor, width: float, function: str) -> Tensor:
    """s times the slope of a function's secant, `(f(x + width) - f(x - width)) / (2 * width)`; see `name_of`."""
    return call_operation(_SECANT, s, x, width, function, kernel=_secant)


def _spread(x: Tensor, most: float) -> Tensor:
    centred = x - x.mean()
    spread = (centred * centred).mean().sqrt().clamp_max(most)  # in a third of the time of `var`
    return torch.where(spread > 0, spread, 1.0)


def _spread_by_kernel(x: Tensor, most: float) -> Tensor:
    if not 0 < x.numel() < LEAST or x.device.type != "cpu":
        found = _passes_for(x)
        return _spread(x, most) if found is None else _number(found.variance(x) ** 0.5, most, x.dtype)
    return _few_spread(x, most)


def _spread_by_torch(x: Tensor, most: float) -> Tensor:
    return _few_spread(x, most) if 0 < x.numel() < LEAST and x.device.type == "cpu" else _spread(x, most)


def _few_spread(x: Tensor, most: float) -> Tensor:
    """In one operation, which takes three times as long for many."""
    return _number(x.std(correction=0).item(), most, x.dtype)


def _number(spread: float, most: float, dtype: torch.dtype) -> Tensor:
    return torch.scalar_tensor(min(spread, most) if spread > 0 else 1.0, dtype=dtype, device="cpu")


def _comparison_slope(x: Tensor, spread: Tensor, number: float, side: int, widths: Sequence[float]) -> Tensor:
    distance = (x - number).abs() / spread
    slope = torch.zeros_like(x)
    for width in widths:
        within = (width - distance).sign().clamp_min(0)  # quicker than a comparison made a number
        slope = torch.add(slope, within, alpha=_rise(side, width))
    return slope / (spread * _weight(widths))


def _rise(side: int, width: float) -> float:
    return side / (2 * width**2)


def _weight(widths: Sequence[float]) -> float:
    return sum(1 / width for width in widths)


def _comparison(s: Tensor, x: Tensor, *args: Any) -> Tensor:
    return s * _comparison_slope(x, *args)


def _comparison_by_kernel(
    s: Tensor, x: Tensor, spread: Tensor, *args: Any, over: bool = False, wait: bool = True
) -> Tensor:
    found = _exact_passes_for(x, wait)
    if found is None:
        return torch.mul(s, _comparison_slope(x, spread, *args), out=s if over else None)
    number, side, widths = args
    numbers, fours = (number, spread.item(), _weight(widths)), _fours(side, tuple(widths), x.dtype)
    return _in_one_pass(lambda s, out: found.comparison(s, x, out, numbers, fours), s, x, over)


@functools.cache
def _fours(side: int, widths: tuple[float, ...], dtype: torch.dtype) -> list[float]:
    """The widths, the widest first, each with the sum of what the secants as wide or wider rise by: in the formula's order,
    and in its numbers, so that the sum is the formula's to the last digit. Behind them there are widths of -1, up to fours.
    """
    found: list[float] = []
    for least in sorted(widths, reverse=True):
        total = torch.zeros((), dtype=dtype, device="cpu")
        for width in widths:
            total = torch.add(total, float(width >= least), alpha=_rise(side, width))
        found += (least, total.item())
    return found + [-1.0, 0.0] * (-len(widths) % 4)


def _secant_slope(x: Tensor, width: float, function: str) -> Tensor:
    f = _NAMED[function]
    rise = f(x + width) - f(x - width)
    return rise if 2 * width == 1 else rise / (2 * width)


def _secant(s: Tensor, x: Tensor, width: float, function: str) -> Tensor:
    return s * _secant_slope(x, width, function)


def _secant_by_kernel(s: Tensor, x: Tensor, width: float, function: str, over: bool = False) -> Tensor:
    found = _passes_for(x)
    if found is None:
        return torch.mul(s, _secant_slope(x, width, function), out=s if over else None)
    return _in_one_pass(lambda s, out: found.secant(function, s, x, out, width), s, x, over)


def _passes_for(x: Tensor) -> Passes | None:
    """The loops for a tensor, where it is worth one and lies as they take it: by its size and layout alone."""
    return passes_of(x.dtype) if x.numel() >= LEAST and x.device.type == "cpu" and is_dense(x) else None


def _exact_passes_for(x: Tensor, wait: bool) -> Passes | None:
    """The same for loops that give the formula's numbers to the last digit: for a small tensor as well, if they are there."""
    if x.device.type != "cpu" or not is_dense(x):
        return None
    if x.numel() >= LEAST:
        begin(x.dtype)
    return passes_of(x.dtype) if wait and x.numel() >= LEAST else known_passes(x.dtype)


def _in_one_pass(made_by: Callable[[Tensor | None, Tensor], Tensor], s: Tensor, x: Tensor, over: bool) -> Tensor:
    """s times a slope in one pass, where s lies as x does; otherwise in two. With `over`, it is written over s."""
    if s.dtype == x.dtype and s.shape == x.shape and s.stride() == x.stride() and not s.is_neg():
        return made_by(s, s if over else torch.empty_like(x))
    return torch.mul(s, made_by(None, torch.empty_like(x)), out=s if over else None)


def _product(s: Tensor, x: Tensor, *_: Any) -> Tensor:
    """What s times a slope of x looks like, on tensors without data.

    For a product of such tensors torch imports its compiler, in 0.6 seconds, which a live run has no other need of.
    """
    return torch.empty_like(x) if type(x) is Tensor and s.shape == x.shape and s.dtype == x.dtype else s * x


def _one_number(x: Tensor, _: float) -> Tensor:
    return x.new_empty(())


OPERATIONS: dict[Any, int] = {}  # all of them, with the place of the tensor that a pass in C goes through


def _define(schema: str, formula: Callable[..., Tensor], kernel: Callable[..., Tensor], over: bool = True) -> Any:
    """An operation, and with `over` the one that writes over its first argument."""
    tags = [torch.Tag.pointwise] if over else []
    operation = define(f"{schema} -> Tensor", kernel, _product if over else _one_number, *tags)
    DECOMPOSITIONS[operation] = formula
    OPERATIONS[operation] = 1 if over else 0
    if over:

        def written_over(s: Tensor, *args: Any) -> Tensor:
            return kernel(s, *args, over=True)

        written = schema.replace("(Tensor", "_(Tensor(a!)", 1)
        OPERATIONS[define(f"{written} -> Tensor(a!)", written_over, lambda s, *_: s, *tags)] = 1
    return operation


_SPREAD = _define("spread_of(Tensor x, float most)", _spread, _spread_by_kernel, over=False)
_COMPARISON = _define(
    "comparison_signal(Tensor s, Tensor x, Tensor spread, float number, int side, float[] widths)",
    _comparison,
    _comparison_by_kernel,
)
_SECANT = _define("secant_signal(Tensor s, Tensor x, float width, str function)", _secant, _secant_by_kernel)
