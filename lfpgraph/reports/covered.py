"""The coverage report: does feedback work on this model, and where does it not?"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..composites.composite import Composite, get_composite
from ..engine.options import Options
from ..engine.plan import Plan, make_plan
from ..errors import InputError, TraceError
from ..graph.calls import check_module
from ..graph.graph import OpGraph, is_float, module_path, operation_name, source_line
from ..tracing.tracer import trace
from .classes import CLASSES, NodeClass, arrivals, classify_nodes, leak_counts, place_of
from .parameters import parameter_report

__all__ = ["CoverageReport", "coverage", "coverage_of", "node_flops"]

SCHEMA = 1
_MAX_PLACES = 5


@dataclass
class CoverageReport:
    """What each operation of a model does with reward.

    Attributes:
        model: its name. data: the report as plain values, in the schema that docs/coverage-schema.md describes.
        graph, plan: what the report was made from.
        classes, flops: class and floating-point operations of every operation node.
        kinds: the class of each module, by its path.
    """

    model: str
    data: dict[str, Any]
    graph: OpGraph = field(repr=False)
    plan: Plan = field(repr=False)
    classes: dict[fx.Node, NodeClass] = field(repr=False)
    flops: dict[fx.Node, int] = field(repr=False)
    kinds: dict[str, str] = field(repr=False)

    @property
    def covered(self) -> bool:
        """Whether reward passes wherever it arrives."""
        return self.data["nodes"]["uncovered"] == 0

    def to_json(self) -> dict[str, Any]:
        """The report as values that `json.dumps` takes; the schema is in docs/coverage-schema.md."""
        return self.data

    def table(self, **options: Any) -> Any:
        """The report for the terminal, a renderable of rich."""
        from .table import render

        return render(self.data, **options)

    def to_html(self) -> str:
        """One self-contained HTML page: totals, operations, parameters, the module tree and the graph."""
        from .html import render

        return render(self.data, self.classes, self.kinds, self.plan)

    def __str__(self) -> str:
        nodes = self.data["nodes"]
        parts = ", ".join(f"{nodes[name]} {name}" for name in CLASSES)
        return f"{self.model}: {nodes['total']} operations: {parts}"


def coverage(
    model: nn.Module,
    args: Sequence[Any] | Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    composite: str | Composite = "lfp",
    name: str | None = None,
    fallback: str = "retrace",
) -> CoverageReport:
    """Report how reward passes every operation of a model. On fake or meta tensors it runs nothing but shape functions.

    Args:
        model: any module, on any device; of fake tensors, or on "meta", it needs no memory.
        args, kwargs: example inputs, a single tensor or a dict allowed; without both, inputs are worked out from the model.
        composite: whose rules are reported.
        name: for the report; the class's name otherwise.
        fallback: "retrace" traces real values where torch.export cannot (if the tensors are real); "error" does not.

    Raises:
        TraceError, InputError: the model cannot be traced on these inputs, no inputs can be worked out, or an unknown
            `fallback`.
    """
    start = time.perf_counter()
    check_module(model, "coverage", TraceError)
    fallback = Options(fallback=fallback).fallback
    fake = next((p for p in model.parameters() if isinstance(p, FakeTensor)), None)
    if args is None and kwargs is None:
        from ..inputs.examples import example_inputs

        with fake.fake_mode if fake is not None else nullcontext():
            args, kwargs = example_inputs(model)
    if args is not None and not isinstance(args, Iterable):
        raise InputError(f"args must be a tensor, a tuple or a dict, not {type(args).__name__}")
    if fake is not None or any(p.device.type == "meta" for p in model.parameters()):
        fallback = "error"
    graph = trace(model, () if args is None else args, kwargs or {}, dynamic=False, fallback=fallback)
    return coverage_of(graph, model, composite, name or type(model).__name__, time.perf_counter() - start)


def coverage_of(
    graph: OpGraph, model: nn.Module, composite: str | Composite = "lfp", name: str = "", seconds: float = 0.0
) -> CoverageReport:
    """The report on a graph that is traced already; `seconds` is how long that took."""
    pairs = list(zip(graph.placeholder_nodes, graph.placeholders))
    wanted = {n for n, p in pairs if p.kind in ("parameter", "input") and is_float(n.meta.get("val"))}
    plan = make_plan(graph, get_composite(composite), wanted, on_missing="report")
    arrived = arrivals(plan)
    classes = classify_nodes(plan, arrived)
    flops = node_flops(list(graph.operations()))
    counts = Counter(entry.name for entry in classes.values())
    nodes = {"total": len(classes), **{c: counts[c] for c in CLASSES}}
    bearing = nodes["total"] - nodes["none"]
    work: Counter[str] = Counter()
    for node, entry in classes.items():
        work[entry.name] += flops[node]
    total = sum(work.values())
    operations = _operations(classes, flops)
    kinds = Counter(row["class"] for row in operations)
    data = {
        "model": name,
        "nodes": nodes,
        "operations": operations,
        "parameters": parameter_report(model, plan, arrived),
        "summary": {
            "reward_bearing_nodes": bearing,
            "covered_nodes": bearing - nodes["uncovered"],
            "covered_fraction": (bearing - nodes["uncovered"]) / bearing if bearing else 1.0,
            "derived_fraction": nodes["derived"] / bearing if bearing else 0.0,
            "operations": {c: kinds[c] for c in CLASSES},
            "flops": {"total": total, **{c: work[c] for c in CLASSES}},
        },
        "leaks": leak_counts(plan, arrived),
        "problems": _problems(classes),
        "trace": {"tracer": graph.tracer, "seconds": round(seconds, 3)},
        "composite": get_composite(composite).name,
        "schema": SCHEMA,
    }
    modules = {path: type(module).__name__ for path, module in model.named_modules() if path}
    return CoverageReport(name, data, graph, plan, classes, flops, modules)


def _operations(classes: Mapping[fx.Node, NodeClass], flops: Mapping[fx.Node, int]) -> list[dict[str, Any]]:
    """Rows of operation and class, most frequent first, with the modules and lines where the first ones stand."""
    groups: dict[tuple[str, str, str, str], list[fx.Node]] = defaultdict(list)
    for node, entry in classes.items():
        groups[operation_name(node), entry.name, entry.origin, entry.family].append(node)
    rows = [
        {
            "operation": op,
            "class": name,
            "origin": origin,
            "family": family,
            "count": len(nodes),
            "flops": sum(flops[n] for n in nodes),
            "where": list(dict.fromkeys(place_of(n) or n.name for n in nodes))[:_MAX_PLACES],
        }
        for (op, name, origin, family), nodes in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["operation"], row["class"]))


def _problems(classes: Mapping[fx.Node, NodeClass]) -> list[dict[str, Any]]:
    """Every derived or uncovered node, with what to do."""
    rows = []
    for node, entry in classes.items():
        if entry.name in ("derived", "uncovered"):
            rows.append(
                {
                    "class": entry.name,
                    "operation": operation_name(node),
                    "node": node.name,
                    "module": module_path(node),
                    "source": source_line(node),
                    "advice": _advice(node, entry.name),
                }
            )
    return sorted(rows, key=lambda row: row["class"] != "uncovered")


def _advice(node: fx.Node, name: str) -> str:
    op = f"@lfpgraph.rule(torch.ops.{operation_name(node)})"
    if name == "uncovered":
        return f"It has no rule and no derivative: register a rule with {op}, or no reward passes here."
    return f"Its true vector-Jacobian product is used; register a rule with {op} if the operation needs another."


def node_flops(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """FLOPs of every node, for the example's sizes.

    Products (matrix products, convolutions, attention) are counted by torch's own formulas, a multiply-add as two;
    every other operation on floats counts one per element of its output. Views and moves of integers count nothing.
    Nodes of equal operation and shapes are counted once and remembered.
    """
    known: dict[Any, int] = {}
    result = {}
    for node in nodes:
        key = _key(node)
        if key not in known:
            known[key] = _count(node)
        result[node] = known[key]
    return result


def _describe(value: Any) -> Any:
    value = value.meta.get("val") if isinstance(value, fx.Node) else value
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(str(n) for n in value.shape))
    return str(value)


def _key(node: fx.Node) -> Any:
    leaves = tree_leaves((node.args, node.kwargs), is_leaf=lambda x: isinstance(x, fx.Node))
    return (node.target, tuple(_describe(leaf) for leaf in leaves))


def _count(node: fx.Node) -> int:
    value = node.meta.get("val")
    items: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    outputs = [t for t in items if is_float(t)]
    if not outputs or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    counter = FlopCounterMode(display=False)
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
        with torch.no_grad(), counter:
            node.target(*args, **kwargs)
        flops = int(counter.get_total_flops())
    except Exception:  # a shape function that does not run again: the elements are counted instead
        flops = 0
    if flops:
        return flops
    return 0 if node.target.is_view else sum(map(_elements, outputs))


def _elements(tensor: Tensor) -> int:
    try:
        return int(tensor.numel())
    except Exception:  # a size that only the data decides
        return 0
