"""The plan: the graph as a list of units (one op or one region each), every unit with its rule and epsilon chosen."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..composites.composite import Composite
from ..errors import NoRuleError
from ..graph.depths import layer_places
from ..graph.graph import OpGraph, module_path
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..registry import CONTRACTION, PRODUCT, RECTIFIER, REDUCTION, SPLIT, Rule, find_rule
from ..rules.views import nothing
from .units import Unit, Ways, all_still, is_differentiable, op_unit, region_unit

__all__ = ["Plan", "Unit", "make_plan"]

log = logging.getLogger("lfpgraph")


@dataclass
class Plan:
    """Units in execution order, ready for `propagate`."""

    graph: OpGraph
    composite: Composite
    units: list[Unit]
    wanted: set[fx.Node] = field(default_factory=set)
    derived: Counter[str] = field(default_factory=Counter)
    asleep: set[fx.Node] = field(default_factory=set)

    def wake(self, values: Sequence[Any]) -> None:
        """Find the wholly zero weights that are to learn (`Ruleset.wakes`) and the units whose output they make zero.

        The epsilon rule hands no signal through an output of zero, so it must let it pass there until the weight has moved.

        Args:
            values: of the placeholders.
        """
        for node, placeholder, value in zip(self.graph.placeholder_nodes, self.graph.placeholders, values):
            if placeholder.kind == "parameter" and node in self.wanted:
                if self.composite.parameter_ruleset(placeholder.target).wakes(value):
                    self.asleep.add(node)
        zeroed: dict[fx.Node, tuple[fx.Node, ...]] = {node: (node,) for node in self.asleep}
        for unit in self.units if zeroed else ():
            family = None if unit.is_region else self.graph.info[unit.node].family
            carried = [zeroed.get(n, ()) for n, a, w in zip(unit.inputs, unit.active, unit.weightlike) if a or w]
            if family is None or not any(carried):
                continue
            if family in (CONTRACTION, PRODUCT) or (all(carried) and family.affine):
                zeroed[unit.node] = unit.zeroed_by = tuple(dict.fromkeys(p for ps in carried for p in ps))

    def explain(self) -> str:
        """What will run: number of nodes by origin, family and operation."""
        counts = Counter((unit.origin, unit.family.name, str(unit.node.target)) for unit in self.units)
        return "\n".join(f"{n:6d}  {origin:9s} {family:14s} {op}" for (origin, family, op), n in sorted(counts.items()))


def make_plan(graph: OpGraph, composite: Composite, wanted: set[fx.Node], on_missing: str = "derive") -> Plan:
    """Choose a rule for every node.

    Args:
        graph: a classified graph.
        composite: the rules to use.
        wanted: placeholders whose signal is asked for (parameters that train, inputs that need one), and other nodes
            that a signal shall reach; these never lie within a region.
        on_missing: "derive" uses the true vjp of an operation without a rule; "error" refuses; "report" marks one that
            cannot be derived as "uncovered" and lets no reward pass there (for reports, not for training).

    Raises:
        NoRuleError: operations without a rule that cannot be derived, all of them listed.
    """
    structure = composite.structure(graph) if composite.structure else Structure(find_regions(graph))
    regions = [region for region in structure.regions if not wanted & set(region.nodes[:-1])]
    by_node = {node: region for region in regions for node in region.nodes}
    reached = set(wanted)  # nodes through which a signal can arrive at a wanted placeholder
    places = layer_places(graph) if composite.by_place else {}
    still: set[fx.Node] = set()  # nodes that depend on the input through blocking operations alone: constants
    plan = Plan(graph, composite, [], reached)
    missing: list[fx.Node] = []
    for node in graph.operations():
        ruleset = composite.ruleset(module_path(node), places.get(node))
        follows = ruleset.rules == composite.default.rules  # not a part with the rules of another kind of composite
        region = by_node.get(node) if ruleset.rules or (composite.structure and follows) else None
        if region is not None and region.exit is not node:
            continue
        blocked = structure.blocked_inputs(region.nodes if region else (node,)) if follows else set()
        ways = Ways(reached, still, blocked)
        unit = region_unit(graph, region, ruleset, ways) if region else op_unit(graph, node, ruleset, ways)
        if follows and unit.rule is not None and node in structure.rules:
            unit.rule = Rule(structure.rules[node](unit.rule.handler), constants=unit.rule.constants)
        blocks = unit.rule is not None and unit.rule.blocks
        if blocks:
            unit.rule, unit.origin = None, "none"
        if blocks or all_still(graph, unit, still):
            still.add(node)
        if unit.origin == "derived":
            derivable = is_differentiable(node)
            if on_missing == "report" and not derivable:
                unit.origin, unit.rule = "uncovered", Rule(nothing)
            elif on_missing == "error" or not derivable:
                missing.append(node)
            plan.derived[str(node.target)] += derivable
        if any(unit.wanted) and (unit.rule is not None or node.target is operator.getitem):
            reached.add(node)
        plan.units.append(unit)
    if missing:
        listed = "; ".join(graph.describe(node) for node in missing)
        hint = "Register them with @lfpgraph.rule" + (
            ', or pass on_missing="derive".' if on_missing == "error" else "."
        )
        kinds = len({node.target for node in missing})
        noun = "operation has" if kinds == 1 else "operations have"
        raise NoRuleError(f"{kinds} {noun} no rule and cannot pass reward on: {listed}. {hint}")
    plan.derived = +plan.derived
    if plan.derived:
        log.info("derived rules (true vjp) for %s", ", ".join(f"{op} x{n}" for op, n in plan.derived.items()))
    _settle_epsilon(plan)
    return plan


def _settle_epsilon(plan: Plan) -> None:
    """Decide where the epsilon factor is applied (see `Family.epsilon`).

    A layer written as product, then scale, then bias is one linear operation and gets one factor, on the last of them:
    that one hands its signal on in stabilized form (Note [Two forms of a signal]), as the fused layer would have it.
    """
    producer = {unit.node: unit for unit in plan.units}
    linear: set[int] = set()
    for unit in plan.units:
        if unit.rule is None or unit.origin not in ("rule", "region"):
            continue
        actives, weighted = sum(unit.active), any(unit.weightlike)
        kind = unit.family.epsilon
        takes = kind == "always" or (kind == "weighted" and actives <= 1 and weighted)
        takes = takes or (kind == "mixing" and actives > 1)
        if unit.family.elementwise and unit.family.affine and actives == 1 and weighted:
            unit.ends_layer = _follows_layer(unit, producer, linear)
            takes = takes or unit.ends_layer
        if takes:
            unit.epsilon = 0.0 if unit.rule.own_stabilizer else unit.option_epsilon
            unit.rectified = _only_relu(unit, plan, producer)
            linear.add(id(unit))


def _only_relu(unit: Unit, plan: Plan, producer: dict[fx.Node, Unit]) -> fx.Node | None:
    """The relu behind the unit's (first) output, if nothing else reads it.

    Where the output is not positive, relu hands no signal on, so the factor there is of no account; elsewhere relu's
    output equals it. So the unit's own output need not be kept, and has no sign to take.
    """
    output = unit.node
    if isinstance(output.meta.get("val"), list | tuple):
        items = [n for n in output.users if n.target is operator.getitem and n.args[1] == 0]
        if len(items) != 1:
            return None
        output = items[0]
    users = list(output.users)
    if len(users) != 1 or output in plan.graph.output_nodes or users[0].target is not torch.ops.aten.relu.default:
        return None
    behind, usual = producer.get(users[0]), find_rule(users[0].target)
    if behind is None or usual is None or usual.family is not RECTIFIER or behind.handler is not usual.handler:
        return None
    return users[0]


def _follows_layer(unit: Unit, producer: dict[fx.Node, Unit], linear: set[int]) -> bool:
    """Whether the unit's active operand comes, through views and casts, from a linear unit."""
    node = next(n for n, active in zip(unit.inputs, unit.active) if active)
    while node in producer:
        before = producer[node]
        if id(before) in linear:
            return before.family not in (REDUCTION, SPLIT) or before.ends_layer
        if not before.family.passes_form or sum(before.active) > 1 or len(before.inputs) < 1:
            return False
        node = before.inputs[before.active.index(True)] if True in before.active else before.inputs[0]
    return False
