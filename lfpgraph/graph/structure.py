"""What a composite may say of a graph before the plan is made: its units, their rules, and where no reward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import fx

from ..registry import Handler
from .regions import Region

__all__ = ["Structure"]


@dataclass
class Structure:
    """How a composite reads a graph.

    Attributes:
        regions: runs of operations that are one unit.
        rules: for the last operation of a unit, a function that makes its rule out of the one that it would have.
        further: for the last operation of a unit, a node that its rule hands a signal to, beside its own arguments: what
            the places were chosen by, of an operation that looks something up.
        blocked: pairs (operation, operand) between which no reward passes; the operand counts as constant there.
    """

    regions: list[Region]
    rules: dict[fx.Node, Callable[[Handler], Handler]] = field(default_factory=dict)
    further: dict[fx.Node, fx.Node] = field(default_factory=dict)
    blocked: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)

    def blocked_inputs(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The operands of these operations that get no reward."""
        inside = set(nodes)
        return {operand for node, operand in self.blocked if node in inside}
