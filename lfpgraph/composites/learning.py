"""`lfp`: LFP as it learns best, the published rule changed in nine places. Each is an option of its own.

- Products of activations hand the whole vector-Jacobian product to each factor, not an equal share of it, and quotients to
  divisor and numerator alike (`Ruleset.products="whole"`): theorem 1 of the LFP paper carried from layers to products.
  Reward is not conserved there.
- Layers, norms and poolings hand on all of their signal, also where an output is near zero: no stabilizer (`Ruleset.epsilon=0`).
- Sums of activations hand all of the total's signal to each term (`Ruleset.sums="whole"`), also where the total is zero.
- Matrices take `max(abs(w), c rms(w)) * s` (`Ruleset.floor`), so that weights near zero move; c was chosen by experiment `rule`.
- That is divided by a third of the size at which torch's layers start a weight, or by the matrix's own if that is less
  (`Ruleset.unit`), so that the feedback is as large as the gradient, or up to three times that: clipping by a common norm acts
  on matrices and not on vectors alone.
- Vectors (biases, scales of norms) take the plain signal (`Ruleset.vectors="signal"`), so a bias of zero moves.
- Activations that bend hand on the slope of a secant, `(f(x + h) - f(x - h)) / 2h`, in place of `f(x) / x`. It is bounded, of the
  right sign, and takes no derivative; a jump (a step added to what bends) hands on its height over 2h at most. A function with
  f(2x) = 2f(x), such as relu, keeps `f(x) / x`, which is its slope. Where f is not defined for all numbers (log, sqrt, 1 / x),
  the line goes through f at `(1 + h) x` and at `x / (1 + h)`. Where secants do not follow the slope, because f repeats within 2h
  or falls back by jumps as much as it rises (`x % 1`, `x - floor(x)`, `sin(10 x)`), the slope itself is handed on, and so it
  is where f grows as exp does: an end of the secant of `exp(-t * x)` may be as large as it likes.
- Other activations that are not zero at zero are centred (see `centred`).
- Steps (comparisons, sign, round) hand on the slope of secants of several widths (see `steps`).
- A choice (argmax, topk) is credited by contrast: what each alternative would have brought (see `choices`).

Source: this project; docs/design.md says why and what it costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CompositeError
from ..graph.graph import ACTIVE, OpGraph
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..registry import Call, Handler
from ..rules.activations import activation, choice, exponential
from ..rules.views import vjp
from ..secants.operations import name_of, secant_signal
from .centred import (
    activations_of,
    centred_rule,
    centred_signal,
    in_place_of,
    is_zero_at_zero,
    sources_of,
    value_at,
    values_on,
)  # fmt: skip
from .choices import BLIND_SHARE, SHARPNESS, add_choices
from .steps import STEP_SPREAD, STEP_WIDTHS, add_steps

__all__ = ["learning_structure"]

Slope = Callable[[float, Call, Tensor, int], Tensor]


def learning_structure(
    graph: OpGraph,
    secant: float = 0.5,
    step_widths: tuple[float, ...] = STEP_WIDTHS,
    step_spread: float = STEP_SPREAD,
    blind_share: float = BLIND_SHARE,
    sharpness: float = SHARPNESS,
) -> Structure:
    """The usual regions, with the rules of `lfp` for activations: `Composite(..., structure=partial(learning_structure, ...))`.

    Args:
        secant: h of an activation that bends, in units of x or, where it is not defined for all numbers, as a share of it; 0
            for `f(x) / x`, centred.
        step_widths: the widths of a step's secants, in units of the spread of x.
        step_spread: a larger spread of x counts as this one.
        blind_share, sharpness: of a choice (see `choices`).

    Raises:
        CompositeError: an option is negative, or `step_widths` holds a zero or nothing, or `step_spread` is zero.
    """
    if secant < 0:
        raise CompositeError(f"secant={secant!r} must be zero or more")
    found = Structure(find_regions(graph))
    add_steps(graph, found, step_widths, step_spread)
    add_choices(graph, found, blind_share, sharpness)
    for entry, nodes in activations_of(graph, found):
        if nodes[-1] in found.rules:
            continue
        bending = _bending(graph, found, entry, nodes, secant) if secant else None
        if bending is not None:
            found.rules[nodes[-1]] = bending
        elif not is_zero_at_zero(entry, nodes):
            found.rules[nodes[-1]] = centred_rule
    return found


def _bending(
    graph: OpGraph, found: Structure, entry: fx.Node | None, nodes: tuple[fx.Node, ...], width: float
) -> Callable[[Handler], Handler] | None:
    """The rule by f's slope; None for f(2x) = 2f(x), as of a relu, or an f that does not take a row of numbers.

    Other tensors that f reads (a bound, a mask) are some numbers here: positive ones, others as well, and zero.
    """
    sources = sources_of(nodes)
    blocked = found.blocked_inputs(nodes)
    active = [n for n in sources if graph.info[n].kind == ACTIVE and n not in blocked]
    if len(active) != 1:
        return None
    others = [n for n in sources if n is not active[0]]
    wide, narrow = (torch.linspace(-n, n, 17, dtype=torch.float64, device="cpu") for n in (4, 0.4))
    x = torch.cat([wide, narrow])
    bends, everywhere = False, False
    for sign in (1, -1) if others else (1,):
        doubles, defined = _doubles(active[0], nodes, x, others, sign)
        bends, everywhere = bends or doubles is False, everywhere or defined
    if not bends:
        return None
    if _is_exponential(active[0], nodes, others) or (everywhere and _runs_against(active[0], nodes, others, width)):
        return _derivative_rule
    slope = _slope if everywhere else _slope_in_proportion
    if others and _doubles(active[0], nodes, x, others, 0)[0]:
        slope = partial(_slope_or_ratio, slope)
    if slope is _slope and len(nodes) == 1 and (function := name_of(nodes[0])) is not None:
        return partial(_secant_rule, signal=partial(_secant_of_known, width, function))
    return partial(_secant_rule, signal=partial(_secant, partial(slope, width)))


def _runs_against(entry: fx.Node, nodes: tuple[fx.Node, ...], others: list[fx.Node], width: float) -> bool:
    """Whether secants of this width rise and fall without regard to f's slope: f repeats within it, or jumps back as it rises."""
    count = 256
    # Evenly spread, on no grid.
    shares = torch.arange(count, dtype=torch.float64, device="cpu") * (5**0.5 / 2) % 1 * 2 - 1
    x = torch.where(torch.arange(count, device="cpu") % 2 == 0, 4.0, 0.4) * shares
    known = {n: _some_numbers(n, place, count, 1, False) for place, n in enumerate(others)}
    slopes = []
    for h in (width, 1e-5):
        low, high = (values_on(entry, nodes, x + side * h, known) for side in (-1, 1))
        if low is None or high is None or low.is_complex() or low.shape != x.shape:
            return False
        slopes.append(((high - low) / (2 * h)).nan_to_num(0.0, 0.0, 0.0))
    along, size = slopes[0] * slopes[1].sign(), slopes[1].abs()
    blind = (along < 0.1 * size)[x.abs() > 0.4]  # the secant is far below the slope, or against it
    return bool(size.any() and (along.sum() < 0.1 * along.abs().sum() or blind.double().mean() > 0.5))


def _is_exponential(entry: fx.Node, nodes: tuple[fx.Node, ...], others: list[fx.Node]) -> bool:
    """Whether f grows as exp does: the secant of `exp(-t * x)` is sinh(t / 2) / (t / 2) times the slope, whatever t may be."""
    x = torch.tensor([-600.0, 600.0], dtype=torch.float64, device="cpu")
    known = {n: _some_numbers(n, place, 2, 1, False) for place, n in enumerate(others)}
    found = values_on(entry, nodes, x, known)
    return found is not None and bool((found.abs() > 1e100).any())


def _doubles(
    entry: fx.Node, nodes: tuple[fx.Node, ...], x: Tensor, others: list[fx.Node], sign: int
) -> tuple[bool | None, bool]:
    """Whether f(2x) = 2f(x) for these numbers, and whether f is defined for all of them; None where f does not take them.

    They are of float64 or, where the operations do not take them together, of the model's own types.
    """
    value = entry.meta.get("val")
    for own in (False, True) if others and isinstance(value, Tensor) else (False,):
        numbers = x.to(value.dtype) if own else x  # type: ignore[union-attr]
        known = {n: _some_numbers(n, place, len(x), sign, own) for place, n in enumerate(others)}
        once, twice = (values_on(entry, nodes, given, known) for given in (numbers, 2 * numbers))
        if once is not None and twice is not None and once.shape == x.shape:
            defined = (once + twice).isfinite()
            return torch.allclose(twice[defined], 2 * once[defined], rtol=1e-6), bool(defined.all())
    return None, False


def _some_numbers(node: fx.Node, place: int, count: int, sign: int, own: bool) -> Any:
    """Stand-ins for a tensor or number that a function reads beside its input; the same each time.

    Args:
        sign: 1 for positive numbers, -1 for those of both signs, 0 for zeros.
        own: of the node's own type.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 3 if isinstance(value, int | torch.SymInt) else 1.5
    i = torch.arange(count, device="cpu") + 7 * place
    if value.dtype is torch.bool:
        return i * 5 % 3 == 0
    if not value.is_floating_point():
        return i % 3 + 1
    numbers = (i * 7 % 11) / 11.0 + 0.5
    numbers = numbers * (sign if sign >= 0 else 1 - 2 * (i % 2))
    return numbers.to(value.dtype if own else torch.float64)


def _derivative_rule(usual: Handler) -> Handler:
    """The derivative in place of the identity rule; a user's own rule stays."""
    return vjp if usual in (activation, choice, exponential) else usual


def _secant_rule(usual: Handler, signal: Callable[[Call, Tensor, int], Tensor]) -> Handler:
    return in_place_of(usual, signal)


def _secant_of_known(width: float, function: str, call: Call, s: Tensor, place: int) -> Tensor:
    """The same signal of a function that is an operation known by name."""
    x = call.inputs[place]
    if x.dtype not in (torch.float32, torch.float64):
        return _secant(partial(_slope, width), call, s, place)
    return secant_signal(s, x, width, function)


def _secant(slope: Callable[[Call, Tensor, int], Tensor], call: Call, s: Tensor, place: int) -> Tensor:
    """Signal of x for z = f(x): that of a line through two points of f."""
    x = call.inputs[place]
    if x.is_complex():
        return centred_signal(None, call, s, place)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # where x + h could be x again
    return s * slope(call, x, place).to(s.dtype)


def _slope(width: float, call: Call, x: Tensor, place: int) -> Tensor:
    """Of the line through f(x - h) and f(x + h)."""
    rise = value_at(call, place, x + width) - value_at(call, place, x - width)
    return rise if 2 * width == 1 else rise / (2 * width)


def _slope_in_proportion(width: float, call: Call, x: Tensor, place: int) -> Tensor:
    """Of the line through f((1 + h) x) and f(x / (1 + h)), each of them at x itself where it is not defined; 0 where none is."""
    here = value_at(call, place, x)
    ends = []
    for other in (x * (1 + width), x / (1 + width)):
        value = value_at(call, place, other)
        defined = value.isfinite()
        ends.append((torch.where(defined, other, x), torch.where(defined, value, here)))
    (far, of_far), (near, of_near) = ends
    return ((of_far - of_near) / (far - near)).nan_to_num(0.0, 0.0, 0.0)


def _slope_or_ratio(slope: Slope, width: float, call: Call, x: Tensor, place: int) -> Tensor:
    """A slope, but f(x) / x where all else that f reads is zero: f(2x) is 2f(x) there, as of a relu written as a maximum."""
    others = [o for i, o in enumerate(call.inputs) if i != place and isinstance(o, Tensor) and o.is_floating_point()]
    bends = reduce(torch.logical_or, [o != 0 for o in others])
    return torch.where(bends, slope(width, call, x, place), torch.where(x == 0, 0.0, call.output / x))
