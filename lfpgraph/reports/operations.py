"""What a plan does with each operation, as rows for tables and reports."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from ..engine.plan import Plan
from ..graph.graph import operation_name
from ..wrapping.calls import wrapping_of

__all__ = ["operation_table", "plan_of", "reward_summary"]


def plan_of(model: nn.Module) -> Plan:
    """The plan of a wrapped model that has been called.

    Raises:
        LookupError: not wrapped, or not traced yet.
    """
    wrapping = wrapping_of(model)
    plans = wrapping.all_plans() if wrapping is not None else []
    if plans:
        return plans[0]
    raise LookupError(f"{type(model).__name__} has no plan yet: wrap it and call it once with autograd on")


def operation_table(plan: Plan) -> list[dict[str, Any]]:
    """Rows of operation, family, origin and count, most frequent first.

    `origin` is "rule", "region" (part of an activation or normalisation written out), "gradient" (loss, or a function of
    weights only), "derived" (no rule: true vjp) or "none" (carries no reward).
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for unit in plan.units:
        for node in unit.nodes:
            counts[operation_name(node), unit.family.name, unit.origin] += 1
    rows = [
        {"operation": op, "family": family, "origin": origin, "count": n} for (op, family, origin), n in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["operation"]))


def reward_summary(model: nn.Module) -> tuple[int, int]:
    """How many parameter tensors hold a non-zero `.grad` after a backward pass, and how many there are."""
    parameters = list(model.parameters())
    return sum(p.grad is not None and bool(p.grad.any()) for p in parameters), len(parameters)
