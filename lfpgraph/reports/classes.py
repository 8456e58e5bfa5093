"""How reward passes each operation of a plan, and where it arrives at all."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from ..engine.plan import Plan
from ..engine.units import Unit
from ..graph.graph import is_float, module_path, source_line
from ..registry import CAST, VIEW, Family

__all__ = ["CLASSES", "NodeClass", "arrivals", "classify_nodes", "place_of"]

CLASSES = ("rule", "structural", "derived", "none", "uncovered")
_STRUCTURAL = {VIEW, CAST}


@dataclass(frozen=True)
class NodeClass:
    """How reward passes an operation.

    Attributes:
        name: one of `CLASSES`.
        origin: what the plan uses: "rule", "region", "gradient", "derived", "none" or "uncovered".
        family: of the rule.
    """

    name: str
    origin: str
    family: str


def place_of(node: fx.Node) -> str:
    """`module path, source line` of a node, as far as they are known."""
    return ", ".join(part for part in (module_path(node), source_line(node)) if part)


def arrivals(plan: Plan) -> set[fx.Node]:
    """The nodes at which a signal can arrive from the model's float outputs."""
    arrived = {
        node for node in plan.graph.user_output_nodes if isinstance(node, fx.Node) and is_float(node.meta["val"])
    }
    for unit in reversed(plan.units):
        if unit.node not in arrived:
            continue
        if unit.node.target is operator.getitem:
            arrived.add(unit.node.args[0])  # type: ignore[arg-type]
        elif unit.rule is not None and unit.origin != "uncovered":
            arrived.update(node for node, wanted in zip(unit.inputs, unit.wanted) if wanted)
    return arrived


def classify_nodes(plan: Plan, arrived: set[fx.Node]) -> dict[fx.Node, NodeClass]:
    """The class of every operation.

    - "rule": a rule of its own, or part of a region that has one.
    - "structural": a view, a copy or a cast: it moves signals and changes none.
    - "derived": no rule; its true vector-Jacobian product is used.
    - "none": needs none: constant, integer, or no reward arrives there.
    - "uncovered": reward arrives and cannot pass.
    """
    info = plan.graph.info
    return {node: _classify(unit, node, info[node].family, arrived) for unit in plan.units for node in unit.nodes}


def _classify(unit: Unit, node: fx.Node, family: Family | None, arrived: set[fx.Node]) -> NodeClass:
    if node.target is operator.getitem:
        carries = unit.node in arrived and any(unit.wanted) and is_float(node.meta.get("val"))
        return NodeClass("structural" if carries else "none", "rule" if carries else "none", VIEW.name)
    if unit.rule is None or unit.node not in arrived:
        return NodeClass("none", "none", unit.family.name)
    if unit.origin in ("derived", "uncovered"):
        return NodeClass(unit.origin, unit.origin, unit.family.name)
    if family is None:  # a loss, or a function of weights, whose gradient is wanted by design
        return NodeClass("derived", unit.origin, unit.family.name)
    if unit.is_region:
        return NodeClass("rule", unit.origin, unit.family.name)
    return NodeClass("structural" if family in _STRUCTURAL else "rule", unit.origin, family.name)
