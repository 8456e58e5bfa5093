"""Integers and booleans that follow from positions alone, read off the operations that make them, for all sizes at once.

Known are integers that grow by a fixed step along each axis (`arange` and what is made of it), and where such integers are at
least zero (masks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Holds", "Known", "Steps", "expression", "what_is_known"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class Steps:
    """Integers: `start`, plus along each axis the index times the axis's step. An axis with step 0 may have any size."""

    start: int
    steps: tuple[int, ...] = ()

    def plus(self, other: Steps, factor: int = 1) -> Steps:
        """self + factor * other, broadcast."""
        n = max(len(self.steps), len(other.steps))
        a, b = ((0,) * (n - len(x.steps)) + x.steps for x in (self, other))
        return Steps(self.start + factor * other.start, tuple(x + factor * y for x, y in zip(a, b)))

    @property
    def constant(self) -> bool:
        return not any(self.steps)

    @property
    def never_negative(self) -> bool:
        return self.start >= 0 and all(step >= 0 for step in self.steps)


@dataclass(frozen=True)
class Holds:
    """Booleans: where these integers are at least zero."""

    integers: Steps

    @property
    def always(self) -> bool:
        return self.integers.never_negative

    @property
    def never(self) -> bool:
        return self.integers.start < 0 and all(step <= 0 for step in self.integers.steps)

    @property
    def causal(self) -> bool:
        """Whether a row sees the columns up to its own."""
        *others, row, column = (0, 0, *self.integers.steps)
        return self.integers.start == 0 and not any(others) and (row, column) == (1, -1)


Known = Steps | Holds
_EVERYWHERE, _NOWHERE = Holds(Steps(0)), Holds(Steps(-1))


def what_is_known(node: fx.Node, known: Mapping[fx.Node, Known]) -> Known | None:
    """What a node's value is known to be, from what is known of its inputs."""
    make = _MAKE.get(node.target)
    value = node.meta.get("val")
    if make is None or not isinstance(value, Tensor) or value.dtype.is_floating_point or value.dtype.is_complex:
        return None
    try:
        args: Any = fx.map_arg(node.args, lambda n: known.get(n, n))  # type: ignore[arg-type, return-value]
        found = make(node, *args, **node.kwargs)
    except _Unknown:
        return None
    if isinstance(found, Holds) is not (value.dtype is torch.bool):
        return None
    integers = _without_steps_of_one(found.integers if isinstance(found, Holds) else found, value)
    return Holds(integers) if isinstance(found, Holds) else integers


def _without_steps_of_one(x: Steps, value: Tensor) -> Steps:
    """An axis of one entry has no step: it may be broadcast."""
    steps = _aligned(x, value.dim())
    return Steps(x.start, tuple(0 if isinstance(n, int) and n == 1 else step for n, step in zip(value.shape, steps)))


def expression(size: int | torch.SymInt) -> Any:
    """A size that can be compared without assuming anything of it."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


class _Unknown(Exception):
    """Nothing is known of such a value."""


def _steps(x: Any) -> Steps:
    """An operand: integers by position, or a number."""
    if isinstance(x, Steps):
        return x
    if type(x) is int:
        return Steps(x)
    raise _Unknown


def _number(x: Any) -> int:
    if type(x) is not int:
        raise _Unknown
    return x


def _arange(node: fx.Node, *bounds: Any, **options: Any) -> Steps:
    start, step = (0, 1) if len(bounds) == 1 else (bounds[0], 1) if len(bounds) == 2 else (bounds[0], bounds[2])
    return Steps(_number(start), (_number(step),))


def _sum(sign: int) -> Callable[..., Steps]:
    def add(node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> Steps:
        return _steps(x).plus(_steps(y), sign * _number(alpha))

    return add


def _moved(change: Callable[..., Steps]) -> Callable[..., Known]:
    """An operation that moves entries about, on integers and on booleans."""

    def move(node: fx.Node, x: Any, *args: Any, **options: Any) -> Known:
        if isinstance(x, Holds):
            return Holds(change(node, x.integers, *args, **options))
        return change(node, _steps(x), *args, **options)

    return move


def _aligned(x: Steps, axes: int) -> list[int]:
    """A step for each of a tensor's axes; those in front of the known ones have none."""
    return [0] * (axes - len(x.steps)) + list(x.steps)


def _axes(node: Any) -> int:
    return node.meta["val"].dim()  # type: ignore[no-any-return]


def _same(node: fx.Node, x: Steps, *args: Any, **options: Any) -> Steps:
    return x


def _unsqueeze(node: fx.Node, x: Steps, dim: int) -> Steps:
    steps = _aligned(x, _axes(node) - 1)
    steps.insert(dim % _axes(node), 0)
    return Steps(x.start, tuple(steps))


def _slice(node: fx.Node, x: Steps, dim: int = 0, start: Any = 0, end: Any = None, step: Any = 1) -> Steps:
    steps, first = _aligned(x, _axes(node)), _number(start or 0)
    if first < 0:
        raise _Unknown
    begin = x.start + first * steps[dim]
    steps[dim] *= _number(step)
    return Steps(begin, tuple(steps))


def _select(node: fx.Node, x: Steps, dim: int, index: Any) -> Steps:
    steps = _aligned(x, _axes(node) + 1)
    if _number(index) < 0:
        raise _Unknown
    step = steps.pop(dim)
    return Steps(x.start + index * step, tuple(steps))


def _index(node: fx.Node, x: Steps, indices: Sequence[Any]) -> Steps:
    places = [_steps(i) for i in indices]
    if len(places) != _axes(node.args[0]) or not all(place.never_negative for place in places):
        raise _Unknown
    found = Steps(x.start)
    for place, step in zip(places, _aligned(x, len(places))):
        found = found.plus(place, step)
    return found


def _cat(node: fx.Node, pieces: Sequence[Any], dim: int = 0) -> Steps:
    """One run of integers made of several; only the last piece's size may be open."""
    sources: Any = node.args[0]
    sizes = [source.meta["val"].shape[dim] for source in sources]
    runs = [_aligned(_steps(piece), _axes(node)) for piece in pieces]
    step = next((run[dim] for run, size in zip(runs, sizes) if size is not sizes[0] or expression(size) != 1), 0)
    start, before = _steps(pieces[0]).start, 0
    whole = _with(runs[0], dim, step)
    for piece, run, size in zip(pieces, runs, sizes):
        goes_on = run[dim] == step or expression(size) == 1
        if not goes_on or _with(run, dim, step) != whole or piece.start != start + _number(before) * step:
            raise _Unknown
        before += size
    return Steps(start, tuple(whole))


def _with(steps: list[int], dim: int, step: int) -> list[int]:
    return [step if i == dim % len(steps) else s for i, s in enumerate(steps)]


def _at_least(sign: int, gap: int) -> Callable[..., Holds]:
    """Where sign * (x - y) >= gap."""

    def compare(node: fx.Node, x: Any, y: Any) -> Holds:
        return Holds(Steps(-gap).plus(_steps(x).plus(_steps(y), -1), sign))

    return compare


def _equal(same: bool) -> Callable[..., Holds]:
    def compare(node: fx.Node, x: Any, y: Any) -> Holds:
        difference = _steps(x).plus(_steps(y), -1)
        if not difference.constant:
            raise _Unknown
        return _EVERYWHERE if (difference.start == 0) is same else _NOWHERE

    return compare


def _and(node: fx.Node, x: Any, y: Any) -> Holds:
    if not (isinstance(x, Holds) and isinstance(y, Holds)):
        raise _Unknown
    if x.never or y.never:
        return _NOWHERE
    if x.always or x == y:
        return y
    if y.always:
        return x
    raise _Unknown


def _full(node: fx.Node, size: Any, fill: Any, **options: Any) -> Known:
    if node.meta["val"].dtype is torch.bool:
        return _EVERYWHERE if _number(int(fill)) else _NOWHERE
    return _steps(fill)


def _running_sum(node: fx.Node, x: Any, dim: int, **options: Any) -> Steps:
    if not (isinstance(x, Holds) and x.never):
        raise _Unknown
    return Steps(0)


def _true(node: fx.Node, *args: Any, **options: Any) -> Holds:
    return _EVERYWHERE


_MAKE: dict[Any, Callable[..., Known]] = {
    _aten.arange.default: _arange,
    _aten.arange.start: _arange,
    _aten.arange.start_step: _arange,
    _aten.add.Tensor: _sum(1),
    _aten.sub.Tensor: _sum(-1),
    _aten.unsqueeze.default: _moved(_unsqueeze),
    _aten.expand.default: _moved(_same),
    _aten.clone.default: _moved(_same),
    _aten.alias.default: _moved(_same),
    _aten.detach.default: _moved(_same),
    _aten._to_copy.default: _moved(_same),
    _aten.slice.Tensor: _moved(_slice),
    _aten.select.int: _moved(_select),
    _aten.index.Tensor: _moved(_index),
    _aten.cat.default: _cat,
    _aten.cumsum.default: _running_sum,
    _aten.bitwise_and.Tensor: _and,
    _aten.logical_and.default: _and,
    _aten.ones.default: _true,
    _aten.new_ones.default: _true,
    _aten.ones_like.default: _true,
    _aten.full.default: _full,
}
for _scalar in ("Scalar", "Tensor"):
    _MAKE |= {
        getattr(_aten.ge, _scalar): _at_least(1, 0),
        getattr(_aten.gt, _scalar): _at_least(1, 1),
        getattr(_aten.le, _scalar): _at_least(-1, 0),
        getattr(_aten.lt, _scalar): _at_least(-1, 1),
        getattr(_aten.eq, _scalar): _equal(True),
        getattr(_aten.ne, _scalar): _equal(False),
    }
