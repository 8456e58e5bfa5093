"""How reward passes each operation of a plan, where it arrives at all, and where some of it is absorbed."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

from torch import fx

from ..engine.plan import Plan
from ..engine.units import Unit
from ..graph.graph import is_float, module_path, source_line
from ..registry import ACTIVATION, ATTENTION, CAST, CONTRACTION, NORMALISATION, SOFTMAX, SPLIT, VIEW, Family

__all__ = ["CLASSES", "LEAKS", "NodeClass", "arrivals", "classify_nodes", "kinds_of", "leak_counts", "place_of"]

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


LEAKS = {
    "bias": "a bias or another parameter added takes the share of its value",
    "constant": "a constant added takes the share of its value",
    "epsilon": "the stabilizer takes a share of small outputs",
    "activation at zero": "reward on an activation whose input is exactly 0",
    "normalisation": "the true vector-Jacobian product of a norm, whose mean and scale depend on the input",
    "softmax": "the true vector-Jacobian product of a softmax (AttnLRP prop. 3.1), also within attention",
    "gradient": "loss or function of weights: the plain gradient",
    "derived": "the operation's own vector-Jacobian product, which promises nothing",
    "uncovered": "reward arrives and cannot pass",
    "stopped": "an output that no way of rewards leads to: the model computes under no_grad, detached or in integers",
}


def leak_counts(plan: Plan, arrived: set[fx.Node]) -> dict[str, int]:
    """How many units of the plan that receive reward can absorb some of it, by kind (see `LEAKS`)."""
    counts: Counter[str] = Counter()
    for unit in plan.units:
        if unit.node in arrived and unit.rule is not None:
            counts.update(kinds_of(unit))
    return {kind: counts[kind] for kind in LEAKS if counts[kind]}


def kinds_of(unit: Unit) -> list[str]:
    """The kinds of leak that a unit can have (see `LEAKS`)."""
    if unit.origin in ("derived", "uncovered", "gradient"):
        return [unit.origin]
    kinds = []
    family = unit.family
    if unit.epsilon:
        kinds.append("epsilon")
    if family in (SOFTMAX, ATTENTION):
        kinds.append("softmax")
    if family is NORMALISATION:
        kinds.append("normalisation")
    if family is ACTIVATION:
        kinds.append("activation at zero")
    if family is CONTRACTION and sum(is_float(n.meta.get("val")) for n in unit.inputs) > 2:
        kinds.append("bias")
    if family is SPLIT and not unit.is_region:
        floats = [active for active, n in zip(unit.active, unit.inputs) if is_float(n.meta.get("val"))]
        adds = not all(floats) or any(isinstance(a, int | float) and a for a in unit.node.args[:2])
        if adds:
            kinds.append("bias" if any(unit.weightlike) else "constant")
    return kinds
