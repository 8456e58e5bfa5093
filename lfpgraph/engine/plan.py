"""The plan: the graph as a list of units (one op or one region each), every unit with its rule and epsilon chosen."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..composites.composite import Composite, Ruleset
from ..errors import CompositeError, NoRuleError
from ..graph.depths import layer_places
from ..graph.factors import is_cut, is_factor, joined_factors
from ..graph.graph import WEIGHT, OpGraph, module_path
from ..graph.regions import find_regions
from ..graph.structure import Structure
from ..kernels import SMALL
from ..registry import CONTRACTION, NORMALISATION, PRODUCT, RECTIFIER, REDUCTION, SPLIT, Rule, find_rule
from ..rules.views import nothing
from .units import Unit, Ways, all_still, is_differentiable, op_unit, region_unit, stopped_at

__all__ = ["How", "Plan", "make_plan"]

log = logging.getLogger("lfpgraph")


class How(NamedTuple):
    """How a parameter's signal becomes feedback.

    Attributes:
        placeholder: its node.
        plain: whether its feedback is the signal itself.
        share, unit: its feedback is `max(abs(w), share * rms(w)) * unit * s`, if it is `small`, and nothing else is to be done.
    """

    placeholder: fx.Node
    plain: bool
    share: float
    unit: float
    small: bool


@dataclass(frozen=True)
class Plan:
    """Everything that the walk (`propagate`) has to know of a graph.

    Attributes:
        graph, composite: what the plan was made of.
        units: single operations and regions, each with its rule, in the order of running.
        wanted: the nodes that `make_plan` was given as wanted, and all through which a signal can reach them.
        rulesets: the ruleset of each parameter, by its placeholder.
        asleep: placeholders of parameters that train but are wholly zero (`Ruleset.wakes`).
    """

    graph: OpGraph
    composite: Composite
    units: list[Unit]
    wanted: set[fx.Node]
    rulesets: dict[fx.Node, Ruleset]
    asleep: set[fx.Node]

    @property
    def names_awake(self) -> list[str]:
        """The names of the parameters that receive feedback even while they are wholly zero."""
        pairs = zip(self.graph.placeholder_nodes, self.graph.placeholders)
        plain = {n for n, ruleset in self.rulesets.items() if ruleset.scale == "signal"}
        return [p.target for n, p in pairs if n in self.asleep | plain]

    @property
    def names_cut(self) -> list[str]:
        """The names of vectors that the run cuts into matrices, and which take the plain signal because they are vectors."""
        pairs = zip(self.graph.placeholder_nodes, self.graph.placeholders)
        plain = {n for n, ruleset in self.rulesets.items() if ruleset.vectors == "signal" != ruleset.scale}
        return [p.target for n, p in pairs if n in plain and is_cut(self.graph, n)]

    @property
    def stopped(self) -> dict[str, str]:
        """The names of parameters that train and that no reward reaches, with the operation where it stops."""
        return stopped_at(self.graph, self.units, self.wanted & self.rulesets.keys())

    def used(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Of a model's parameters those that the run uses, as far as can be seen before the backward pass."""
        used = {p.target for p in self.graph.placeholders if p.kind == "parameter"}
        return {name: parameter for name, parameter in named if name in used}

    def feedback(self, placeholder: fx.Node, value: Tensor, s: Tensor, over: bool = False) -> Tensor:
        """What is to be added to the value of a placeholder that the signal s has reached; of an input the signal itself.

        With `over`, it may be written over s.
        """
        ruleset = self.rulesets.get(placeholder)
        return s if ruleset is None else ruleset.feedback(value, s, placeholder in self.asleep, over)

    def how(self, placeholder: fx.Node) -> How:
        """How the signal of a parameter becomes feedback."""
        ruleset, w = self.rulesets.get(placeholder), placeholder.meta["val"]
        if ruleset is None or ruleset.takes_signal(w):
            return How(placeholder, True, 0.0, 1.0, False)
        share, unit, floor = ruleset.size_of(w)
        small = 0 < w.numel() <= SMALL and w.dtype in (torch.float32, torch.float64)
        return How(placeholder, False, share, unit, small and not floor and placeholder not in self.asleep)


def make_plan(
    graph: OpGraph,
    composite: Composite,
    wanted: set[fx.Node],
    on_missing: str = "derive",
    values: Sequence[Any] = (),
) -> Plan:
    """Choose a rule for every node.

    Args:
        graph: a classified graph.
        composite: the rules to use.
        wanted: placeholders whose signal is asked for (parameters that train, inputs that need one), and other nodes
            that a signal shall reach; these never lie within a region.
        on_missing: "derive" uses the true vjp of an operation without a rule; "error" refuses; "report" marks one that
            cannot be derived as "uncovered" and lets no reward pass there (for reports, not for training).
        values: of the placeholders, to see which parameters are wholly zero; without them none counts as such.

    Raises:
        NoRuleError: operations without a rule that cannot be derived, all of them listed.
        CompositeError: the composite compares two runs, and the graph has but one.
    """
    if composite.compares and not graph.references:
        raise CompositeError(
            f"composite {composite.name!r} compares the input with a baseline, which only lfpgraph.attribute runs, too "
            "(baseline=); choose another composite here"
        )
    units, reached = _choose_units(graph, composite, wanted)
    _settle_missing(graph, units, on_missing)
    _settle_epsilon(graph, units)
    nodes = graph.placeholder_nodes
    parameters = ((n, p.target) for n, p in zip(nodes, graph.placeholders) if p.kind == "parameter")
    rulesets = {node: composite.parameter_ruleset(name) for node, name in parameters}
    plain: dict[int, Ruleset] = {}
    joined = joined_factors(graph) if any(r.factors == "signal" for r in rulesets.values()) else set()
    for node, r in rulesets.items():
        if (r.factors == "signal" and node in joined) or (r.vectors == "signal" and not is_factor(graph, node)):
            rulesets[node] = _by_signal(r, plain)
    asleep = {
        n
        for n, x in zip(nodes, values)
        if n in wanted and n in rulesets and rulesets[n].wakes(x) and is_factor(graph, n)
    }
    _let_signals_pass(graph, units, asleep)
    return Plan(graph, composite, units, reached, rulesets, asleep)


def _by_signal(ruleset: Ruleset, made: dict[int, Ruleset]) -> Ruleset:
    """The ruleset by which feedback is the plain signal; one for all parameters that have it in common."""
    if id(ruleset) not in made:
        made[id(ruleset)] = replace(ruleset, scale="signal")
    return made[id(ruleset)]


def _choose_units(graph: OpGraph, composite: Composite, wanted: set[fx.Node]) -> tuple[list[Unit], set[fx.Node]]:
    """The units in the order of running, and the nodes through which a signal can arrive at a wanted one."""
    structure = composite.structure(graph) if composite.structure else Structure(find_regions(graph))
    regions = [region for region in structure.regions if not wanted & set(region.nodes[:-1])]
    by_node = {node: region for region in regions for node in region.nodes}
    places = layer_places(graph) if composite.by_place else {}
    units: list[Unit] = []
    reached = set(wanted)
    still: set[fx.Node] = set()  # nodes that depend on the input through blocking operations alone: constants
    for node in graph.operations():
        ruleset = composite.ruleset(module_path(node), places.get(node))
        follows = ruleset.rules == composite.default.rules  # not a part with the rules of another kind of composite
        region = by_node.get(node) if ruleset.rules or (composite.structure and follows) else None
        if region is not None and region.exit is not node:
            continue
        blocked = structure.blocked_inputs(region.nodes if region else (node,)) if follows else set()
        ways = Ways(reached, still, blocked)
        unit = region_unit(graph, region, ruleset, ways) if region else op_unit(graph, node, ruleset, ways)
        if follows and ruleset.rules and node in structure.further and structure.further[node] in reached - still:
            unit.add_input(structure.further[node])
        if follows and unit.rule is not None and node in structure.rules:
            unit.rule = Rule(structure.rules[node](unit.rule.handler), constants=unit.rule.constants)
        if unit.rule is not None and unit.rule.made_by is not None and unit.origin == "rule":
            unit.rule = replace(unit.rule, handler=unit.rule.made_by(node, composite), needs_vjp=False)
        blocks = unit.rule is not None and unit.rule.blocks
        if blocks:
            unit.rule, unit.origin = None, "none"
        if blocks or all_still(graph, unit, still):
            still.add(node)
        if any(unit.wanted) and (unit.rule is not None or node.target is operator.getitem):
            reached.add(node)
            if composite.compares:
                first = next((n for n in node.users if n.target is operator.getitem and n.args[1] == 0), node)
                unit.references = tuple(graph.references.get(n, n) for n in (*unit.inputs, first))
        units.append(unit)
    return units, reached


def _settle_missing(graph: OpGraph, units: Sequence[Unit], on_missing: str) -> None:
    """Derive, mark or refuse the operations without a rule (see `make_plan`)."""
    derived: Counter[str] = Counter()
    missing: list[fx.Node] = []
    for unit in units:
        if unit.origin != "derived":
            continue
        derivable = is_differentiable(unit.node)
        if derivable and on_missing != "error":
            derived[str(unit.node.target)] += 1
        elif on_missing == "report":
            unit.origin, unit.rule = "uncovered", Rule(nothing)
        else:
            missing.append(unit.node)
    if missing:
        kinds = len({node.target for node in missing})
        raise NoRuleError(
            f"{kinds} operation{' has' if kinds == 1 else 's have'} no rule and cannot pass reward on: "
            f"{'; '.join(graph.describe(node) for node in missing)}. Register them with @lfpgraph.rule"
            + (', or pass on_missing="derive".' if on_missing == "error" else ".")
        )
    if derived:
        log.info("derived rules (true vjp) for %s", ", ".join(f"{op} x{n}" for op, n in derived.items()))


def _let_signals_pass(graph: OpGraph, units: Sequence[Unit], asleep: set[fx.Node]) -> None:
    """Mark the units whose output may be zero because of a wholly zero weight that is to learn (`Unit.zeroed_by`).

    The epsilon rule hands no signal through an output of zero, so it must let it pass there until the weight has moved. A
    weight made of other weights (LoHa's product) is looked at itself.
    """
    zeroed: dict[fx.Node, tuple[fx.Node, ...]] = {node: (node,) for node in asleep}
    for unit in units if zeroed else ():
        carried = [zeroed.get(n, ()) for n, a, w in zip(unit.inputs, unit.active, unit.weightlike) if a or w]
        if not any(carried):
            continue
        family = None if unit.is_region else graph.info[unit.node].family
        if graph.info[unit.node].kind == WEIGHT:
            zeroed[unit.node] = (unit.node,)
        elif family in (CONTRACTION, PRODUCT, NORMALISATION) or (family and family.affine and all(carried)):
            zeroed[unit.node] = unit.zeroed_by = tuple(dict.fromkeys(p for ps in carried for p in ps))


def _settle_epsilon(graph: OpGraph, units: Sequence[Unit]) -> None:
    """Decide where the epsilon factor is applied (see `Family.epsilon`).

    A layer written as product, then scale, then bias is one linear operation and gets one factor, on the last of them:
    that one hands its signal on in stabilized form (Note [Two forms of a signal]), as the fused layer would have it.
    """
    producer = {unit.node: unit for unit in units}
    linear: set[int] = set()
    for unit in units:
        if unit.rule is None or unit.origin not in ("rule", "region"):
            continue
        actives, weighted = sum(unit.active), any(unit.weightlike)
        kind = unit.family.epsilon
        takes = kind == "always" or (kind == "weighted" and actives <= 1 and weighted)
        whole = unit.rule.is_vjp and unit.family in (SPLIT, REDUCTION)  # sums that hand on all of it (`Ruleset.sums`)
        takes = (takes or (kind == "mixing" and actives > 1)) and not whole
        if unit.family.elementwise and unit.family.affine and actives == 1 and weighted:
            unit.ends_layer = _follows_layer(unit, producer, linear)
            takes = takes or unit.ends_layer
        if takes:
            unit.epsilon = 0.0 if unit.rule.own_stabilizer else unit.option_epsilon
            unit.rectified = _only_relu(unit, graph.output_nodes, producer)
            linear.add(id(unit))


def _only_relu(unit: Unit, outputs: Sequence[Any], producer: dict[fx.Node, Unit]) -> fx.Node | None:
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
    if len(users) != 1 or output in outputs or users[0].target is not torch.ops.aten.relu.default:
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
