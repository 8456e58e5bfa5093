"""Where reward is absorbed: operations whose inputs' rewards do not add up to their output's."""

from __future__ import annotations

from collections import Counter

from torch import fx

from ..engine.plan import Plan
from ..engine.units import Unit
from ..graph.graph import is_float
from ..registry import ACTIVATION, ATTENTION, CONTRACTION, NORMALISATION, SOFTMAX, SPLIT

__all__ = ["LEAKS", "kinds_of", "leak_counts"]

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
