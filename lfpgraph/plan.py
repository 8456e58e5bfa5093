"""The plan: the graph as a list of units (one op or one region each), every unit with its rule and epsilon chosen."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx

from .composites import Composite, Ruleset
from .errors import NoRuleError
from .places import layer_places
from .regions import Region, find_regions
from .registry import (
    ACTIVATION,
    CONTRACTION,
    GENERAL,
    NORMALISATION,
    NOTHING,
    PRODUCT,
    RECTIFIER,
    VIEW,
    Family,
    find_rule,
)
from .rules.activations import activation
from .rules.views import nothing, vjp
from .structure import Structure
from .trace.graph import ACTIVE, WEIGHT, OpGraph, is_float, module_path

__all__ = ["Plan", "Unit", "make_plan"]

log = logging.getLogger("lfpgraph")


@dataclass
class Unit:
    """A step of the walk.

    Attributes:
        nodes: the graph nodes it stands for; the last gives the output.
        inputs: the node of each tensor argument, in order (for a region: each outside input once, the entry first).
        active, weightlike, wanted: for each input: its class, and whether someone waits for its signal.
        handler: the rule; None when no reward passes.
        epsilon: of the factor on its output; `option_epsilon` is what the handler may use itself.
        rectified: the relu that alone reads the output, which may stand for it in the epsilon factor.
        ends_layer: a scale or bias that closes a layer written out, so that its answers are stabilized already.
        zeroed_by: parameters that, as long as one is wholly zero, make the output zero and are to learn (`Plan.wake`).
        constants: nodes of a region whose result counts as a constant there (the statistics of a norm, say).
        origin: "rule", "region", "gradient" (weight-like or objective part), "derived", "none" or "uncovered".
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    active: tuple[bool, ...]
    weightlike: tuple[bool, ...]
    wanted: tuple[bool, ...]
    handler: Callable[..., Any] | None
    family: Family
    needs_vjp: bool
    option_epsilon: float
    origin: str
    epsilon: float = 0.0
    ends_layer: bool = False
    rectified: fx.Node | None = None
    zeroed_by: tuple[fx.Node, ...] = ()
    constants: frozenset[fx.Node] = frozenset()

    @property
    def node(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def is_region(self) -> bool:
        return len(self.nodes) > 1


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
            entry = None if unit.is_region else find_rule(unit.node.target)
            carried = [zeroed.get(n, ()) for n, a, w in zip(unit.inputs, unit.active, unit.weightlike) if a or w]
            if entry is None or not any(carried):
                continue
            if entry.family in (CONTRACTION, PRODUCT) or (all(carried) and entry.family.affine):
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
        ways = _Ways(reached, still, blocked)
        unit = _region_unit(graph, region, ruleset, ways) if region else _op_unit(graph, node, ruleset, ways)
        if follows and unit.handler is not None and node in structure.rules:
            unit.handler, unit.needs_vjp = structure.rules[node](unit.handler), True
        blocks = getattr(unit.handler, "blocks", False)
        if blocks:
            unit.handler, unit.origin = None, "none"
        if blocks or _all_still(graph, unit, still):
            still.add(node)
        if unit.origin == "derived":
            derivable = _is_differentiable(node)
            if on_missing == "report" and not derivable:
                unit.origin, unit.handler = "uncovered", nothing
            elif on_missing == "error" or not derivable:
                missing.append(node)
            plan.derived[str(node.target)] += derivable
        if any(unit.wanted) and (unit.handler is not None or node.target is operator.getitem):
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


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []

    def visit(source: fx.Node) -> fx.Node:
        if isinstance(source.meta.get("val"), torch.Tensor) or isinstance(source.meta.get("val"), list | tuple):
            found.append(source)
        return source

    fx.node.map_arg((node.args, node.kwargs), visit)
    return found


def _can_carry(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(is_float(item) for item in value)
    return is_float(value)


def _all_still(graph: OpGraph, unit: Unit, still: set[fx.Node]) -> bool:
    """Whether the unit depends on the model's input, but only through what counts as constant."""
    sources = [n for node in unit.nodes for n in node.all_input_nodes if n not in unit.nodes]
    return any(n in still for n in sources) and all(n in still or graph.info[n].kind != ACTIVE for n in sources)


class _Ways(NamedTuple):
    """Where signals can go: nodes reached from what is wanted, nodes that are constant (as inputs of no unit active),
    and inputs of one unit that its structure blocks."""

    reached: set[fx.Node]
    still: set[fx.Node]
    blocked: set[fx.Node]


def _flags(graph: OpGraph, inputs: list[fx.Node], ways: _Ways) -> dict[str, tuple[bool, ...]]:
    quiet = ways.still | ways.blocked
    return {
        "active": tuple(graph.info[n].kind == ACTIVE and _can_carry(n) and n not in quiet for n in inputs),
        "weightlike": tuple(graph.info[n].kind == WEIGHT for n in inputs),
        "wanted": tuple(n in ways.reached and _can_carry(n) and n not in ways.blocked for n in inputs),
    }


def _op_unit(graph: OpGraph, node: fx.Node, ruleset: Ruleset, ways: _Ways) -> Unit:
    inputs = _tensor_inputs(node)
    flags = _flags(graph, inputs, ways)
    info = graph.info[node]
    if info.selects is not None and ruleset.rules:
        return _mask_unit(graph, node, inputs, ruleset, ways.reached)
    entry = find_rule(node.target)
    common: dict[str, Any] = {
        "nodes": (node,),
        "inputs": tuple(inputs),
        "option_epsilon": ruleset.epsilon,
        **flags,
    }
    if node.target is operator.getitem:
        return Unit(handler=None, family=VIEW, needs_vjp=False, origin="rule", **common)
    blocked = entry is not None and entry.family is NOTHING
    if blocked or not any(flags["wanted"]) or not _can_carry(node):
        return Unit(handler=None, family=entry.family if entry else NOTHING, needs_vjp=False, origin="none", **common)
    if not ruleset.rules or info.kind != ACTIVE or info.part == "objective":
        own = entry is not None and getattr(entry.handler, "is_vjp", False)  # a rule that writes out the derivative
        handler = entry.handler if own else vjp  # type: ignore[union-attr]
        return Unit(handler=handler, family=GENERAL, needs_vjp=not own, origin="gradient", **common)
    override = ruleset.handler(node.target, entry.family.name if entry else "")
    if entry is None and override is None:
        return Unit(handler=vjp, family=GENERAL, needs_vjp=True, origin="derived", **common)
    handler = override or entry.handler  # type: ignore[union-attr]
    family = entry.family if entry else GENERAL
    needs = override is not None or entry.needs_vjp  # type: ignore[union-attr]
    return Unit(handler=handler, family=family, needs_vjp=needs, origin="rule", **common)


def _mask_unit(graph: OpGraph, node: fx.Node, inputs: list[fx.Node], ruleset: Ruleset, reached: set[fx.Node]) -> Unit:
    """A mask and, beside its own arguments, the tensor it selects from, which takes its reward."""
    selects = graph.info[node].selects
    assert selects is not None
    wanted = selects in reached and graph.info[node].part == "network"
    return Unit(
        nodes=(node,),
        inputs=(*inputs, selects),
        active=(*(False for _ in inputs), True),
        weightlike=tuple(False for _ in (*inputs, selects)),
        wanted=(*(False for _ in inputs), wanted),
        handler=activation if wanted else None,
        family=ACTIVATION,
        needs_vjp=False,
        option_epsilon=ruleset.epsilon,
        origin="rule" if wanted else "none",
    )


def _region_unit(graph: OpGraph, region: Region, ruleset: Ruleset, ways: _Ways) -> Unit:
    inside = set(region.nodes)
    inputs = [region.entry]
    for node in region.nodes:
        inputs += [n for n in _tensor_inputs(node) if n not in inside and n not in inputs]
    flags: dict[str, Any] = _flags(graph, inputs, ways)
    is_norm = region.kind == "normalisation"
    wants = any(flags["wanted"])
    handler = ruleset.handler(None, region.kind) or (vjp if is_norm else activation)
    constants: frozenset[Any] = getattr(handler, "constants", frozenset())
    return Unit(
        nodes=region.nodes,
        inputs=tuple(inputs),
        handler=handler if wants else None,
        family=NORMALISATION if is_norm else ACTIVATION,
        needs_vjp=is_norm or any(asked and weight for asked, weight in zip(flags["wanted"], flags["weightlike"])),
        option_epsilon=ruleset.epsilon,
        origin="region" if wants else "none",
        constants=frozenset(node for node in region.nodes if node.target in constants),
        **flags,
    )


def _is_differentiable(node: fx.Node) -> bool:
    """Whether autograd has a derivative for the node, tried on its fake values."""

    def fresh(source: fx.Node) -> Any:
        value = source.meta.get("val")
        return value.detach().requires_grad_() if isinstance(value, torch.Tensor) and is_float(value) else value

    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), fresh)
        with torch.enable_grad():
            out = node.target(*args, **kwargs)  # type: ignore[operator]
        tensors = [t for t in (out if isinstance(out, list | tuple) else [out]) if is_float(t) and t.requires_grad]
        leaves = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if is_float(t)]
        if not tensors:
            return False
        found = torch.autograd.grad(tensors, leaves, [torch.ones_like(t) for t in tensors], allow_unused=True)
        return any(g is not None for g in found)
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def _settle_epsilon(plan: Plan) -> None:
    """Decide where the epsilon factor is applied (see `Family.epsilon`).

    A layer written as product, then scale, then bias is one linear operation and gets one factor, on the last of them:
    that one hands its signal on in stabilized form (Note [Two forms of a signal]), as the fused layer would have it.
    """
    producer = {unit.node: unit for unit in plan.units}
    linear: set[int] = set()
    for unit in plan.units:
        if unit.handler is None or unit.origin not in ("rule", "region"):
            continue
        actives, weighted = sum(unit.active), any(unit.weightlike)
        kind = unit.family.epsilon
        takes = kind == "always" or (kind == "weighted" and actives <= 1 and weighted)
        takes = takes or (kind == "mixing" and actives > 1)
        if unit.family.elementwise and unit.family.affine and actives == 1 and weighted:
            unit.ends_layer = _follows_layer(unit, producer, linear)
            takes = takes or unit.ends_layer
        if takes:
            own = getattr(unit.handler, "own_stabilizer", False)  # a rule that divides by sums of its own
            unit.epsilon = 0.0 if own else unit.option_epsilon
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
    behind, entry = producer.get(users[0]), find_rule(users[0].target)
    if behind is None or entry is None or entry.family is not RECTIFIER or behind.handler is not entry.handler:
        return None
    return users[0]


def _follows_layer(unit: Unit, producer: dict[fx.Node, Unit], linear: set[int]) -> bool:
    """Whether the unit's active operand comes, through views and casts, from a linear unit."""
    node = next(n for n, active in zip(unit.inputs, unit.active) if active)
    while node in producer:
        before = producer[node]
        if id(before) in linear:
            return before.family.name not in ("reduction", "split") or before.ends_layer
        if not before.family.passes_form or sum(before.active) > 1 or len(before.inputs) < 1:
            return False
        node = before.inputs[before.active.index(True)] if True in before.active else before.inputs[0]
    return False
