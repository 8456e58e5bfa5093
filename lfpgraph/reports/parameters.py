"""Parameters that can receive no reward, and why."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ..engine.plan import Plan
from ..graph.graph import ancestors, is_float
from ..registry import VIEW
from .classes import place_of

__all__ = ["parameter_report"]

_MAX_NAMED = 3


def parameter_report(model: nn.Module, plan: Plan, arrived: set[fx.Node]) -> dict[str, Any]:
    """Counts of parameters, and each one that no reward reaches with the reason.

    Returns:
        `total`, `elements`, `rewarded`, `rewarded_elements`; `without_reward`: list of `name`, `elements`, `reason`,
        `where` (operations that stop the reward) and `advice`; `all_zero`: names of parameters on the way of reward
        whose values are all zero, so that `abs(w) * s` is zero until they move (not known on meta tensors).
    """
    graph = plan.graph
    nodes: dict[str, fx.Node] = {
        p.target: node for node, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "parameter"
    }
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    useful = ancestors([n for n in graph.user_output_nodes if isinstance(n, fx.Node) and is_float(n.meta["val"])])
    report: dict[str, Any] = {"total": 0, "elements": 0, "rewarded": 0, "rewarded_elements": 0}
    without: list[dict[str, Any]] = []
    zero: list[str] = []
    for name, parameter in model.named_parameters():
        own = [nodes[n] for n in names[id(parameter)] if n in nodes]
        report["total"] += 1
        report["elements"] += parameter.numel()
        if parameter.requires_grad and any(node in arrived for node in own):
            report["rewarded"] += 1
            report["rewarded_elements"] += parameter.numel()
            if _is_zero(parameter):
                zero.append(name)
            continue
        reason, where = _why(parameter, own, useful, plan, arrived)
        row = {"name": name, "elements": parameter.numel(), "reason": reason, "where": where, "advice": _ADVICE[reason]}
        without.append(row)
    return {**report, "without_reward": without, "all_zero": zero}


_ADVICE = {
    "frozen": "Set requires_grad to train it.",
    "not a float": "Integer parameters do not train.",
    "unused": "The forward pass of this example does not use it; give inputs that do, or freeze it.",
    "not on the way to an output": "Nothing computed from it reaches a float output; return that output, or freeze it.",
    "blocked": "Reward stops at the operations listed; if they should pass it, register a rule for them or override it.",
}


def _is_zero(parameter: Tensor) -> bool:
    if parameter.device.type == "meta" or hasattr(parameter, "fake_mode"):
        return False
    return not bool(parameter.detach().any())


def _why(
    parameter: Tensor, own: list[fx.Node], useful: set[fx.Node], plan: Plan, arrived: set[fx.Node]
) -> tuple[str, list[str]]:
    if not parameter.requires_grad:
        return "frozen", []
    if not is_float(parameter):
        return "not a float", []
    if not any(node.users for node in own):
        return "unused", []
    if not any(user in useful for node in own for user in node.users):
        return "not on the way to an output", []
    return "blocked", _blockers(own, plan, arrived)


def _blockers(own: list[fx.Node], plan: Plan, arrived: set[fx.Node]) -> list[str]:
    """The first operations after a parameter that hand no signal on to it, though one arrives there or could."""
    producer = {node: unit for unit in plan.units for node in unit.nodes}
    found: list[str] = []
    seen: set[fx.Node] = set()
    queue = [user for node in own for user in node.users]
    while queue and len(found) < _MAX_NAMED:
        node = queue.pop(0)
        if node in seen or node not in producer:
            continue
        seen.add(node)
        unit = producer[node]
        if unit.rule is None and unit.family is not VIEW or unit.origin == "uncovered" or unit.node in arrived:
            place = place_of(node)
            found.append(f"{node.target}{f' ({place})' if place else ''}")
        else:
            queue += node.users
    return found
