"""Selections that leave nothing but a mask: one_hot(argmax(x)), zeros scattered with ones at topk's places, x == max(x).

Such a mask is a piecewise constant function of x, entry by entry: winner takes all. Between x and the mask are only
indices and booleans, which carry no reward; so the mask itself remembers x (`NodeInfo.selects`) and hands it its reward
by the identity rule, as any activation does, or as a composite says. Masks of another shape than x select nothing of it
entry by entry.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from ..registry import NOTHING
from .graph import CASTS, family_of, is_float, shape_of

__all__ = ["MASKS", "Choice", "choice_of", "selected_from"]

aten = torch.ops.aten
_INDICES = {aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.multinomial.default}
_WITH_INDICES = {
    aten.kthvalue.default,
    aten.max.dim,
    aten.median.dim,
    aten.min.dim,
    aten.mode.default,
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
}
_EXTREMES = {aten.amax.default, aten.amin.default}
_UNRANKED = {aten.kthvalue.default, aten.median.dim, aten.mode.default}
_SMALLEST = {aten.amin.default, aten.argmin.default, aten.min.dim}
MASKS = {*CASTS, aten.scatter.value, aten.where.Scalar}


class Choice(NamedTuple):
    """How a mask came about.

    Attributes:
        source: the float tensor whose entries were chosen.
        picker: the operation that chose.
    """

    source: fx.Node
    picker: fx.Node

    @property
    def drawn(self) -> bool:
        """Whether the source holds chances, by which entries were drawn at random."""
        return self.picker.target is aten.multinomial.default

    @property
    def direction(self) -> int:
        """1 where great entries are chosen, -1 where small ones are, 0 where the order does not decide."""
        if self.picker.target in _UNRANKED:
            return 0
        named = _arguments(self.picker)
        small = self.picker.target in _SMALLEST or not named.get("descending", True) or not named.get("largest", True)
        return -1 if small else 1

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions along which entries stood against one another; none: all of them."""
        dim = -1 if self.drawn else _arguments(self.picker).get("dim")
        return tuple(dim) if isinstance(dim, list | tuple) else () if dim is None else (dim,)


def selected_from(mask: fx.Node, is_active: Callable[[fx.Node], bool]) -> fx.Node | None:
    """The float tensor that a mask selects from, of the mask's shape; None if the node is no such mask."""
    if mask.target not in MASKS or not is_float(mask.meta.get("val")):
        return None
    picker, sources = _origin(mask, is_active)
    if picker is None or len(sources) != 1:
        return None
    (source,) = sources
    return source if is_active(source) and shape_of(source) == shape_of(mask) else None


def choice_of(mask: fx.Node, is_active: Callable[[fx.Node], bool]) -> Choice | None:
    """How a mask that selects came about; None if it does not select, or if it does not select."""
    source = selected_from(mask, is_active)
    picker = _origin(mask, is_active)[0]
    return None if source is None or picker is None else Choice(source, picker)


def _origin(mask: fx.Node, is_active: Callable[[fx.Node], bool]) -> tuple[fx.Node | None, set[fx.Node]]:
    """The operation that chose the entries of a mask, and the floats that it and others looked at."""
    sources: set[fx.Node] = set()
    found = None
    seen, stack = {mask}, [n for n in mask.all_input_nodes if not _is_plain_base(n, mask)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if _picks(node):
            found = node.args[0] if node.target is operator.getitem else node
            sources |= {n for n in found.all_input_nodes if is_float(n.meta.get("val"))}  # type: ignore[union-attr]
        elif is_float(node.meta.get("val")):
            sources |= {node} if is_active(node) else set()
        elif node.op != "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):  # sizes know no values
            stack += node.all_input_nodes
    return found, sources  # type: ignore[return-value]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by name, defaults included."""
    declared = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in declared), node.args))
    return {a.name: a.default_value for a in declared if a.has_default_value()} | given | node.kwargs


def _picks(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return node.args[0].target in _WITH_INDICES  # type: ignore[union-attr,operator]
    return node.target in _INDICES or node.target in _EXTREMES


def _is_plain_base(node: fx.Node, mask: fx.Node) -> bool:
    """What a mask is scattered into: of no account if it holds nothing of the input."""
    return mask.target is aten.scatter.value and node is mask.args[0] and family_of(node) is NOTHING
