"""By which of autograd's nodes a unit's signals arrive at its inputs, and where a backward pass goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..notes import hands_on
from ..values import Values

__all__ = ["goes_on", "slots_of"]


def slots_of(
    exits: dict[Any, Any], inputs: dict[tuple[Any, int], int], values: Values, inside: frozenset[int], known: frozenset[int]
) -> tuple[dict[Any, list[tuple[int, int]]], set[Any]]:  # fmt: skip
    """Where autograd's nodes of a unit hand something to its inputs: for each node, slots and inputs; and all its nodes.

    Args:
        exits, inputs: the nodes of the unit's outputs, and the edges of its inputs.
        values: the run; the way back ends at its values `known` to the plan, but for those `inside` the unit.
    """
    edges, covering, passed = values.edges, values.covering, {-1, *inside, *values.undone}
    found: dict[Any, list[tuple[int, int]]] = {}
    stack = [(node, slot) for node, places in exits.items() for slot in _slots(node, [index for _, index in places])]
    seen = set(stack)
    while stack:
        node, only = stack.pop()
        for slot, (source, index) in enumerate(node.next_functions):
            if source is None or (slot == 0 and node in covering) or only not in (None, slot):
                continue
            place = inputs.get((source, index))
            if place is not None:
                found.setdefault(node, []).append((slot, place))
            elif (number := edges.get((source, index), -1)) in passed or number not in known:
                stack += (new := {(source, to) for to in _slots(source, [index])} - seen)
                seen |= new
    return found, {node for node, _ in seen}


def _slots(node: Any, came_by: Sequence[int]) -> Sequence[int | None]:
    """The slots of a node that what came in goes on by: the same where it hands on each, else all (None)."""
    return came_by if hands_on(node) else [None]


def goes_on(slot: int) -> bool:
    """Whether this backward pass goes on from the node at hand along one of its edges, so that a signal must not be lost."""
    source = torch._C._current_autograd_node().next_functions[slot][0]
    return source is not None and not hasattr(source, "variable") and torch._C._will_engine_execute_node(source)
