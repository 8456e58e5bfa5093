"""Selections that leave nothing but a mask: one_hot(argmax(x)), zeros scattered with ones at topk's places, x == max(x).

Such a mask is a piecewise constant function of x, entry by entry: winner takes all. Between x and the mask are only
indices and booleans, which carry no reward; so the mask itself remembers x (`NodeInfo.selects`) and hands it its reward
by the identity rule, as any activation does, or as a composite says. Masks of another shape than x select nothing of it
entry by entry.

A lookup, `values[argmax(x)]`, leaves no mask, but the values it does not take are there as well (`lookup_of`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from ..registry import CAST, NOTHING, VIEW
from .graph import CASTS, family_of, is_float, shape_of

__all__ = ["MASKS", "LOOKUPS", "Choice", "Lookup", "choice_of", "lookup_of", "selected_from"]

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
# no order, or one that does not say which end of it is taken
_UNRANKED = {
    aten.argsort.default,
    aten.kthvalue.default,
    aten.median.dim,
    aten.mode.default,
    aten.sort.default,
    aten.sort.stable,
}
_SMALLEST = {aten.amin.default, aten.argmin.default, aten.min.dim}
MASKS = {*CASTS, aten.scatter.value, aten.where.Scalar}
LOOKUPS = {aten.embedding.default, aten.gather.default, aten.index.Tensor, aten.index_select.default}


class Choice(NamedTuple):
    """How a mask or a place came about.

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
        small = self.picker.target in _SMALLEST or not _arguments(self.picker).get("largest", True)
        return -1 if small else 1

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions along which entries stood against one another; none: all of them."""
        dim = -1 if self.drawn else _arguments(self.picker).get("dim")
        return tuple(dim) if isinstance(dim, list | tuple) else () if dim is None else (dim,)


class Lookup(NamedTuple):
    """A lookup by choice.

    Attributes:
        choice: how the places came about.
        kind: where the values stand: "rows" of one table, "beside" the scores, or at "pairs" of a row and a place.
        several: whether the last dimension of the places is that of the scores: several entries, or one that is kept.
    """

    choice: Choice
    kind: str
    several: bool


def selected_from(mask: fx.Node, is_active: Callable[[fx.Node], bool]) -> fx.Node | None:
    """The float tensor that a mask selects from, of the mask's shape; None if the node is no such mask."""
    if mask.target not in MASKS or not is_float(mask.meta.get("val")):
        return None
    picker, sources = _origin(_makers(mask), is_active)
    if picker is None or len(sources) != 1:
        return None
    (source,) = sources
    return source if is_active(source) and shape_of(source) == shape_of(mask) else None


def choice_of(mask: fx.Node, is_active: Callable[[fx.Node], bool]) -> Choice | None:
    """How a mask that selects came about; None if it does not select, or if it does not select."""
    source = selected_from(mask, is_active)
    picker = _origin(_makers(mask), is_active)[0]
    return None if source is None or picker is None else Choice(source, picker)


def lookup_of(node: fx.Node, is_active: Callable[[fx.Node], bool]) -> Lookup | None:
    """How a lookup's places came about; None if it is none, or if the values are not one for each entry of the scores.

    Recognised are a table's rows (`embedding`, `table[places]`, `index_select`) and entries beside the scores (`gather`,
    `values[rows, places]`), where the places are an argmax, a topk or a draw along the last dimension of the scores.
    """
    if node.target not in LOOKUPS or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    named = _arguments(node)
    values: Any = named.get("weight", named.get("self"))
    places: Any = named.get("index", named.get("indices"))
    dim = named.get("dim", 0)
    kind = "beside" if node.target is aten.gather.default else "rows"
    rows: Any = None
    if node.target is aten.index.Tensor:
        kind = "rows" if len(places) == 1 else "pairs"
        rows = places[0]
        places = places[-1] if len(places) < 3 and all(isinstance(p, fx.Node) for p in places) else None
    while isinstance(places, fx.Node) and not _picks(places) and family_of(places) in (VIEW, CAST):
        places = places.all_input_nodes[0]
    if not isinstance(places, fx.Node) or not _picks(places):
        return None
    picker, sources = _origin([places], is_active)
    if picker is None or len(sources) != 1:
        return None
    choice = Choice(sources.pop(), picker)
    scores, held, found = shape_of(choice.source), shape_of(values), shape_of(node)
    if not is_active(choice.source) or not choice.direction or scores is None or held is None or found is None:
        return None
    last = len(scores) - 1
    if choice.dims not in ((-1,), (last,)) or dim not in (
        (last, last - len(held)) if kind == "beside" else (0, -len(held))
    ):
        return None
    apart = {"rows": held[0] == scores[-1], "beside": held[: last + 1] == scores, "pairs": held[1:2] == scores[1:]}
    rest = len(held) - {"rows": 1, "beside": last + 1, "pairs": 2}[kind]
    if not apart[kind] or found[:last] != scores[:last] or len(found) - rest not in (last, last + 1):
        return None
    several = len(found) - rest == last + 1
    if kind == "pairs" and several and (shape_of(rows) or [])[-1:] != ["1"]:  # entries of several rows for one
        return None
    return Lookup(choice, kind, several)


def _makers(mask: fx.Node) -> list[fx.Node]:
    """What a mask is made of, but not what it is scattered into, if that holds nothing of the input."""
    plain = {mask.args[0]} if mask.target is aten.scatter.value and family_of(mask.args[0]) is NOTHING else set()  # type: ignore[arg-type]
    return [n for n in mask.all_input_nodes if n not in plain]


def _origin(ends: list[fx.Node], is_active: Callable[[fx.Node], bool]) -> tuple[fx.Node | None, set[fx.Node]]:
    """The operation that chose the entries of a mask made of `ends`, and the floats that it and others looked at.

    Values that were chosen (a maximum, what was sorted) say which entries they were only where those are compared with them.
    """
    sources, compared = set[fx.Node](), set[fx.Node]()
    found: Any = None
    seen, stack = set(), [*ends]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if _picks(node):
            found = node.args[0] if node.target is operator.getitem else node
            read = {n for n in found.all_input_nodes if is_float(n.meta.get("val"))}
            (compared if is_float(node.meta.get("val")) else sources).update(read)
        elif is_float(node.meta.get("val")):
            sources |= {node} if is_active(node) else set()
        elif node.op != "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):  # sizes know no values
            stack += node.all_input_nodes
    return found if compared <= sources else None, sources


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by name, defaults included."""
    declared = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in declared), node.args))
    return {a.name: a.default_value for a in declared if a.has_default_value()} | given | node.kwargs


def _picks(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return node.args[0].target in _WITH_INDICES  # type: ignore[union-attr,operator]
    return node.target in _INDICES or node.target in _EXTREMES
