"""Units: what the walk takes as one step, each with its rule: an operation, a region or a mask of the graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._library.custom_ops import OPDEFS

from ..composites.composite import Ruleset
from ..graph.graph import ACTIVE, WEIGHT, OpGraph, is_float, is_statistic
from ..graph.regions import Region
from ..registry import ACTIVATION, GENERAL, NORMALISATION, NOTHING, VIEW, Family, Handler, Rule, find_rule
from ..rules.activations import activation, choice
from ..rules.views import vjp

__all__ = ["Unit", "Ways", "all_still", "is_differentiable", "op_unit", "region_unit", "stopped_at"]


@dataclass
class Unit:
    """A step of the walk.

    Attributes:
        nodes: the graph nodes it stands for; the last gives the output.
        inputs: the node of each tensor argument, in order (for a region: each outside input once, the entry first).
        active, weightlike, wanted: for each input: its class, and whether someone waits for its signal.
        rule: None where no reward passes.
        family: of its operation; the rule may be a composite's.
        epsilon: of the factor on its output; `option_epsilon` is what the rule may use itself.
        rectified: the relu that alone reads the output, which may stand for it in the epsilon factor.
        ends_layer: a scale or bias that closes a layer written out, so that its answers are stabilized already.
        zeroed_by: weights that, as long as one is wholly zero, make the output zero and are to learn.
        references: the nodes of the inputs, and at last of the (first) output, in the run at the reference point; for rules
            that compare two runs.
        origin: "rule", "region", "gradient" (weight-like or objective part), "derived", "none" or "uncovered".
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    active: tuple[bool, ...]
    weightlike: tuple[bool, ...]
    wanted: tuple[bool, ...]
    rule: Rule | None
    family: Family
    option_epsilon: float
    origin: str
    epsilon: float = 0.0
    ends_layer: bool = False
    rectified: fx.Node | None = None
    zeroed_by: tuple[fx.Node, ...] = ()
    references: tuple[fx.Node, ...] = ()

    @property
    def node(self) -> fx.Node:
        """The node that gives the output."""
        return self.nodes[-1]

    @property
    def handler(self) -> Handler | None:
        """The function of its rule."""
        return self.rule.handler if self.rule is not None else None

    def add_input(self, node: fx.Node) -> None:
        """Let the unit hand a signal to an activation that is no argument of its operations (`Structure.further`)."""
        self.inputs += (node,)
        self.active, self.weightlike, self.wanted = (
            (*self.active, True),
            (*self.weightlike, False),
            (*self.wanted, True),
        )
        if self.rule is None:
            self.rule, self.origin = _VJP, "rule"

    @property
    def is_region(self) -> bool:
        """Whether it stands for several nodes."""
        return len(self.nodes) > 1


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes of an operation's tensor arguments, in order; one that is an argument twice comes twice."""
    found: list[fx.Node] = []

    def visit(source: fx.Node) -> fx.Node:
        if isinstance(source.meta.get("val"), torch.Tensor | list | tuple):
            found.append(source)
        return source

    fx.node.map_arg((node.args, node.kwargs), visit)
    return found


def _can_carry(node: fx.Node) -> bool:
    """Whether a node's value, or an item of it, can carry a signal."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return any(map(is_float, value))
    return is_float(value) and not is_statistic(node)


def all_still(graph: OpGraph, unit: Unit, still: set[fx.Node]) -> bool:
    """Whether the unit depends on the model's input, but only through what counts as constant."""
    sources = [n for node in unit.nodes for n in node.all_input_nodes if n not in unit.nodes]
    return any(n in still for n in sources) and all(n in still or graph.info[n].kind != ACTIVE for n in sources)


class Ways(NamedTuple):
    """Where signals can go.

    Attributes:
        reached: nodes from which a signal can go on to one that is wanted.
        still: nodes that count as constants, whatever they depend on.
        blocked: inputs of the unit in question that get no reward, as its composite's structure says.
    """

    reached: set[fx.Node]
    still: set[fx.Node]
    blocked: set[fx.Node]


_VJP = Rule(vjp)


def _flags(graph: OpGraph, inputs: list[fx.Node], ways: Ways) -> dict[str, Any]:
    """The flags of a unit's inputs: which are active, weight-like, wanted."""
    quiet = ways.still | ways.blocked
    return {
        "active": tuple(graph.info[n].kind == ACTIVE and _can_carry(n) and n not in quiet for n in inputs),
        "weightlike": tuple(graph.info[n].kind == WEIGHT for n in inputs),
        "wanted": tuple(n in ways.reached and _can_carry(n) and n not in ways.blocked for n in inputs),
    }


def op_unit(graph: OpGraph, node: fx.Node, ruleset: Ruleset, ways: Ways) -> Unit:
    """The unit of one operation, with the rule that the ruleset has for it."""
    inputs = _tensor_inputs(node)
    flags = _flags(graph, inputs, ways)
    info = graph.info[node]
    if info.selects is not None and ruleset.rules:
        return _mask_unit(graph, node, inputs, ruleset, ways.reached)
    entry = find_rule(node.target)
    family = entry.family if entry is not None else None

    def unit(rule: Rule | None, family: Family, origin: str) -> Unit:
        return Unit(
            (node,), tuple(inputs), rule=rule, family=family, option_epsilon=ruleset.epsilon, origin=origin, **flags
        )

    if node.target is operator.getitem:
        return unit(None, VIEW, "rule")
    if family is NOTHING or not any(flags["wanted"]) or not _can_carry(node):
        return unit(None, family or NOTHING, "none")
    if not ruleset.rules or info.kind != ACTIVE or info.part == "objective":
        return unit(entry if entry is not None and entry.is_vjp else _VJP, GENERAL, "gradient")
    rule = ruleset.rule(node.target, family) or entry
    if rule is None:
        return unit(ruleset.rule("derived", None) or _VJP, GENERAL, "derived")
    return unit(rule, family or GENERAL, "rule")


def _mask_unit(graph: OpGraph, node: fx.Node, inputs: list[fx.Node], ruleset: Ruleset, reached: set[fx.Node]) -> Unit:
    """A mask and, beside its own arguments, the tensor it selects from, which takes its reward."""
    selects = graph.info[node].selects
    assert selects is not None
    wanted = selects in reached and graph.info[node].part == "network"
    none = (False,) * len(inputs)
    return Unit(
        nodes=(node,),
        inputs=(*inputs, selects),
        active=(*none, True),
        weightlike=(*none, False),
        wanted=(*none, wanted),
        rule=(ruleset.rule("mask", None) or Rule(choice, needs_vjp=False)) if wanted else None,
        family=ACTIVATION,
        option_epsilon=ruleset.epsilon,
        origin="rule" if wanted else "none",
    )


def region_unit(graph: OpGraph, region: Region, ruleset: Ruleset, ways: Ways) -> Unit:
    """The unit of several operations that are one function, with the rule that the ruleset has for its family."""
    inside = set(region.nodes)
    inputs = [region.entry]
    for node in region.nodes:
        inputs += [n for n in _tensor_inputs(node) if n not in inside and n not in inputs]
    flags = _flags(graph, inputs, ways)
    rule = ruleset.rule(None, region.family)
    if rule is None:
        learns = any(asked and weight for asked, weight in zip(flags["wanted"], flags["weightlike"]))
        rule = _VJP if region.family is NORMALISATION else Rule(activation, needs_vjp=learns)
    wants = any(flags["wanted"])
    return Unit(
        nodes=region.nodes,
        inputs=tuple(inputs),
        rule=rule if wants else None,
        family=region.family,
        option_epsilon=ruleset.epsilon,
        origin="region" if wants else "none",
        **flags,
    )


def is_differentiable(node: fx.Node) -> bool:
    """Whether autograd has a derivative for the node: as a run has shown, or tried on its fake values."""
    if node.meta.get("has_derivative"):
        return True

    def fresh(source: fx.Node) -> Any:
        value = source.meta.get("val")
        return value.detach().requires_grad_() if isinstance(value, torch.Tensor) and is_float(value) else value

    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), fresh)
        with torch.enable_grad():
            try:
                out = node.target(*args, **kwargs)  # type: ignore[operator]
            except (RuntimeError, NotImplementedError, TypeError):  # a custom operation that takes no fake values
                own = OPDEFS.get(getattr(getattr(node.target, "_schema", None), "name", ""))
                return bool(node.meta.get("is_followed")) and (own is None or own._backward_fn is not None)
        tensors = [t for t in (out if isinstance(out, list | tuple) else [out]) if is_float(t) and t.requires_grad]
        leaves = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if is_float(t)]
        if not tensors:
            return False
        found = torch.autograd.grad(tensors, leaves, [torch.ones_like(t) for t in tensors], allow_unused=True)
        return any(g is not None for g in found)
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def stopped_at(graph: OpGraph, units: Sequence[Unit], asked: set[fx.Node]) -> dict[str, str]:
    """Of these placeholders the targets of those that no reward reaches, with the operation where it stops.

    That is where whole numbers are made of what they give, or where a quantised layer takes it in unseen by autograd.
    Rules for steps and choices, which give some to what a comparison reads, count as ways.
    """
    alive = {node for node in graph.output_nodes if isinstance(node, fx.Node)}
    for unit in reversed(units):
        if unit.node in alive and (unit.rule is not None or unit.node.target is operator.getitem):
            alive.update(n for n, w in zip(unit.inputs, unit.wanted) if w)
    pairs = list(zip(graph.placeholder_nodes, graph.placeholders))
    ends = {
        p.target: _first_of_whole_numbers(n) if n.users else _reader_of_unseen(n)
        for n, p in pairs
        if n in asked - alive
    }
    return {name: graph.describe(end) for name, end in ends.items() if end is not None}


def _reader_of_unseen(start: fx.Node) -> fx.Node | None:
    """A node that reads what was made of this one where no gradients are recorded, if there is one."""
    made = start.meta.get("unseen_in")
    return None if made is None else next(iter(made.users), None)


def _first_of_whole_numbers(start: fx.Node) -> fx.Node | None:
    """The first node behind this one that makes whole numbers of floating-point ones."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop(0)
        val = node.meta.get("val")
        if isinstance(val, Tensor) and not (val.is_floating_point() or val.is_complex() or val.dtype is torch.bool):
            return node
        waiting += [user for user in node.users if user not in seen]
        seen.update(node.users)
    return None
