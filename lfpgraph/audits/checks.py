"""`check`: compares the graph of an explanation with the model, and its rules with another implementation of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..composites.composite import get_composite
from ..composites.interop import lxt_fits, lxt_handlers
from ..engine.call import Call
from ..engine.plan import make_plan
from ..engine.propagate import run_backward, run_forward
from ..engine.signals import reward_of
from ..engine.units import Unit
from ..errors import AttributionError, check_choice
from ..graph.calls import arguments_of
from ..graph.graph import ACTIVE, is_float, module_path, takes_reward
from ..registry import CAST, RANDOM, VIEW
from ..tracing.tracer import trace
from ..tracing.verify import disagreement

__all__ = ["CheckReport", "check"]

AGAINST = (None, "lxt")


@dataclass
class CheckReport:
    """What `check` found.

    Attributes:
        forward: how far the traced graph's outputs are from the model's, in multiples of what rounding explains.
        rows: for each operation that was compared its node, operation, module and relative difference of the relevance
            that both implementations give its inputs; sorted, largest first.
        skipped: operations that the other implementation has no rule for, and how often they occur.
    """

    forward: float
    rows: list[dict[str, Any]]
    skipped: dict[str, int]

    def ok(self, tolerance: float = 1e-4) -> bool:
        """Whether the graph gives the model's outputs and no operation differs by more than `tolerance`."""
        return self.forward <= 1 and all(row["difference"] <= tolerance for row in self.rows)

    def table(self, most: int = 20) -> str:
        """Lines of text, the largest differences first."""
        lines = [f"outputs of the graph: {self.forward:.2g} times what rounding explains"]
        lines += [f"{r['difference']:9.2e}  {r['op']:45s} {r['node']} {r['module']}" for r in self.rows[:most]]
        lines += [f"not compared: {op} x{count}" for op, count in sorted(self.skipped.items())]
        return "\n".join(lines)


def check(model: nn.Module, inputs: Any, against: str | None = None) -> CheckReport:
    """Compare the graph with the model, and with `against="lxt"` every rule with LXT's own function, at this input.

    At each operation of the AttnLRP walk (epsilon 0) both sides are given the same reward, so a difference belongs to the
    operation that it is reported for.

    Args:
        model, inputs: as for `attribute`.
        against: None, or "lxt" where LXT is installed.

    Raises:
        AttributionError: another name. CompositeError: LXT is not installed.
    """
    check_choice("against", against, AGAINST, AttributionError)
    args, kwargs = arguments_of(inputs, AttributionError)
    with torch.no_grad():
        graph = trace(model, args, kwargs, dynamic=False)
        forward = disagreement(graph, model, args, kwargs)
        if against is None:
            return CheckReport(forward, [], {})
        wanted = {
            n
            for n in graph.operations()
            if graph.info[n].kind == ACTIVE and n.target is torch.ops.aten.embedding.default
        }
        wanted |= {
            n
            for n, p in zip(graph.placeholder_nodes, graph.placeholders)
            if p.kind == "input" and is_float(n.meta.get("val"))
        }
        plan = make_plan(graph, get_composite("attnlrp"), wanted)
        _, calls, env = run_forward(plan, graph.values_of_call(model, args, kwargs))
        output = next(n for n in graph.user_output_nodes if n in plan.wanted and takes_reward(n.meta["val"]))
        comparison = _Comparison()
        signal = torch.linspace(0.5, 1.5, env[output].numel(), dtype=env[output].dtype, device=env[output].device)
        run_backward(plan, calls, env, {output: signal.view_as(env[output])}, observe=comparison)
    return CheckReport(forward, sorted(comparison.rows, key=lambda row: -row["difference"]), comparison.skipped)


class _Comparison:
    """Called by the walk at every unit; compares the rule's answers with those of LXT's function, if LXT has one."""

    def __init__(self) -> None:
        self.theirs = lxt_handlers(epsilon=0.0)
        self.rows: list[dict[str, Any]] = []
        self.skipped: dict[str, int] = {}

    def __call__(self, unit: Unit, call: Call, s: Any, answers: Sequence[Any]) -> None:
        if unit.origin != "rule" or not lxt_fits(call):
            if unit.family not in (VIEW, CAST, RANDOM):
                name = unit.family.name if unit.is_region else str(unit.node.target)
                self.skipped[name] = self.skipped.get(name, 0) + 1
            return
        mine = [None if g is None else reward_of(g, x, call.answered) for g, x in zip(answers, call.inputs)]
        call.stabilized = False
        found = self.theirs[call.op](call, s, *call.args, **call.kwargs)
        form = call.stabilized if isinstance(call.stabilized, float) else None
        pairs = [
            (a, reward_of(g, x, form))
            for a, g, x, active in zip(mine, found, call.inputs, call.active)
            if a is not None and g is not None and active
        ]
        size = sum(float(b.double().square().nan_to_num(0, 0, 0).sum()) for _, b in pairs) ** 0.5
        apart = sum(float((a - b).double().square().nan_to_num(0, 0, 0).sum()) for a, b in pairs) ** 0.5
        row = {"node": unit.node.name, "op": str(unit.node.target), "module": module_path(unit.node)}
        self.rows.append({**row, "difference": apart / size if size else apart})
