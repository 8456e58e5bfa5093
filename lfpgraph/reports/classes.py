"""How reward passes each operation of a plan, and where it arrives at all."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from ..engine.plan import Plan
from ..engine.units import Unit
from ..graph.graph import is_float, module_path, source_line
from ..registry import find_rule

__all__ = ["CLASSES", "NodeClass", "arrivals", "classify_nodes", "operation_name", "place_of"]

CLASSES = ("rule", "structural", "derived", "none", "uncovered")


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


def operation_name(node: fx.Node) -> str:
    """The name of a node's operation: `aten.mm.default`, or that of a Python function."""
    target = node.target
    return str(target) if hasattr(target, "_schema") else getattr(target, "__name__", str(target))


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
        elif unit.handler is not None and unit.origin != "uncovered":
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
    return {node: _classify(unit, node, arrived) for unit in plan.units for node in unit.nodes}


def _classify(unit: Unit, node: fx.Node, arrived: set[fx.Node]) -> NodeClass:
    family = unit.family.name
    if node.target is operator.getitem:
        carries = unit.node in arrived and any(unit.wanted) and is_float(node.meta.get("val"))
        return NodeClass("structural" if carries else "none", "rule" if carries else "none", "view")
    if unit.handler is None or unit.node not in arrived:
        return NodeClass("none", "none", family)
    if unit.origin in ("derived", "uncovered"):
        return NodeClass(unit.origin, unit.origin, family)
    entry = find_rule(node.target)
    if entry is None:  # a loss, or a function of weights, whose gradient is wanted by design
        return NodeClass("derived", unit.origin, family)
    if not unit.is_region and entry.family.name in ("view", "cast"):
        return NodeClass("structural", unit.origin, entry.family.name)
    return NodeClass("rule", unit.origin, entry.family.name if unit.origin != "region" else family)
