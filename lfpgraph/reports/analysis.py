"""What the operation graph says of a model: depth, fan-out, residual paths, and where to cut it to train a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
from torch import fx

from ..graph.cuts import cut_points
from ..graph.graph import ACTIVE, OpGraph, maker_of, module_path, source_line
from ..registry import CAST, SPLIT, VIEW
from .covered import CoverageReport
from .table import count, line, percent, table_of

__all__ = ["analyse", "render", "reward_graph"]

_ROOT = "input"
_SHOWN = 12


def reward_graph(report: CoverageReport) -> nx.DiGraph:
    """Float inputs and the operations that carry reward, from a common root to the outputs; nodes are torch.fx nodes.

    Under the root stand the float inputs, and the operations where integer inputs meet parameters (embeddings).
    """
    graph = report.graph
    kinds = graph.info
    inputs = [n for n in graph.placeholder_nodes if kinds[n].kind == ACTIVE]
    bearing = [n for n, c in report.classes.items() if c.name != "none" and kinds[n].kind == ACTIVE]
    result = nx.DiGraph()
    result.add_node(_ROOT)
    result.add_nodes_from([*inputs, *bearing])
    for node in [*inputs, *bearing]:
        sources: list[Any] = [s for s in node.all_input_nodes if s in result] or [_ROOT]
        result.add_edges_from((source, node) for source in sources)
    return result


def analyse(report: CoverageReport) -> dict[str, Any]:
    """Figures of the graph, as plain values.

    Returns:
        `operations`, `edges`, `depth` (longest path, in operations), `fan_out` (the most read values), `residual_paths`
        (additions that join a value with what was computed from it alone), `cut_points` (operations that all reward
        passes, outermost modules only: train what stands behind one and freeze the rest), `parameters`.
    """
    flow = reward_graph(report)
    readers = sorted((n for n in flow if n is not _ROOT), key=flow.out_degree, reverse=True)
    parameters = report.data["parameters"]
    return {
        "model": report.model,
        "operations": report.data["nodes"]["total"],
        "reward_bearing": report.data["summary"]["reward_bearing_nodes"],
        "edges": flow.number_of_edges() - flow.out_degree(_ROOT),
        "depth": sum(isinstance(n, fx.Node) and n.op == "call_function" for n in nx.dag_longest_path(flow)),
        "fan_out": [{**_place(n), "users": flow.out_degree(n)} for n in readers[:5] if flow.out_degree(n) > 1],
        "residual_paths": _residuals(report, flow),
        "cut_points": _cuts(report, flow),
        "parameters": {key: parameters[key] for key in ("total", "elements", "rewarded", "rewarded_elements")}
        | {"without_reward": [row["name"] for row in parameters["without_reward"]]},
    }


def _place(node: fx.Node) -> dict[str, str]:
    made = maker_of(node)
    return {"node": node.name, "operation": str(made.target), "module": module_path(node), "source": source_line(node)}


def _through_views(graph: OpGraph, node: Any) -> Any:
    """The value that a chain of views and casts shows."""
    while isinstance(node, fx.Node) and graph.info[node].family in (VIEW, CAST) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _residuals(report: CoverageReport, flow: nx.DiGraph) -> list[dict[str, Any]]:
    """Additions of x and f(x), where everything else that reaches the addition comes from x."""
    dominators = nx.immediate_dominators(flow, _ROOT)
    in_region = {node for unit in report.plan.units if unit.is_region for node in unit.nodes}
    rank = {node: i for i, node in enumerate(nx.topological_sort(flow))}
    found = []
    graph = report.graph
    for node in flow:
        splits = isinstance(node, fx.Node) and graph.info[node].family is SPLIT
        if not splits or flow.in_degree(node) != 2 or node in in_region:
            continue
        start = dominators[node]
        sides = [_through_views(graph, source) for source in flow.predecessors(node)]
        skips = [side for side in sides if side is start or _through_views(graph, start) is side]
        if len(skips) == 1 and isinstance(start, fx.Node):
            found.append({**_place(node), "from": _place(start), "operations_between": rank[node] - rank[start] - 1})
    return found


def _cuts(report: CoverageReport, flow: nx.DiGraph) -> list[dict[str, Any]]:
    """Operations that all reward of the main output passes, from the output down: where paths join, or a block ends.

    The main output is the first float output that is no scalar; a scalar is the loss, others are states and caches.
    """
    graph = report.graph
    outputs = sorted((n for n in graph.user_output_nodes if n in flow), key=lambda n: n.meta["val"].dim() == 0)
    if not outputs:
        return []
    flow = flow.subgraph(nx.ancestors(flow, outputs[0]) | {outputs[0]})
    in_region = {node for unit in report.plan.units if unit.is_region for node in unit.nodes}
    edges = cut_points(flow, _ROOT, outputs[0], in_region)
    weights = {n: p.target for n, p in zip(graph.placeholder_nodes, graph.placeholders) if p.kind == "parameter"}
    total_flops = sum(report.flops.values()) or 1
    rows = []
    for cut in edges:
        behind = nx.descendants(flow, cut)
        inside = set(flow) - behind
        names = _parameters_behind(graph.graph, weights, inside)
        flops = sum(report.flops[n] for n in behind)
        rows.append({**_place(cut), "parameters_behind": names, "flops_behind": flops / total_flops})
    return rows


def _parameters_behind(graph: fx.Graph, weights: Mapping[fx.Node, str], inside: set[Any]) -> list[str]:
    """Parameters used only by operations outside `inside`, also through functions of weights."""
    before: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in inside or (node in before and node.op != "placeholder"):
            before.update(node.all_input_nodes)
    return [name for node, name in weights.items() if node.users and node not in before]


def render(found: Mapping[str, Any]) -> Any:
    """The analysis for the terminal, a renderable of rich."""
    from rich.console import Group

    head = (
        f"{found['model']}: {found['operations']} operations, {found['reward_bearing']} carry reward; "
        f"depth {found['depth']}; {len(found['residual_paths'])} residual paths; "
        f"{found['parameters']['rewarded']} of {found['parameters']['total']} parameters reach the output"
    )
    parts: list[Any] = [head]
    if found["parameters"]["without_reward"]:
        parts.append("without reward: " + ", ".join(found["parameters"]["without_reward"][:_SHOWN]))
    if found["fan_out"]:
        read = ", ".join(f"{r['node']} ({r['module'] or 'root'}): {r['users']} users" for r in found["fan_out"])
        parts.append(f"most read: {read}")
    if found["cut_points"]:
        title, behind = (
            "Cut points: train what stands behind one, freeze the rest",
            ("parameter tensors behind", "FLOPs behind"),
        )
        table = table_of(title, "after", "operation", "module", *behind, right=behind)
        for row in _some(found["cut_points"]):
            tensors, flops = count(len(row["parameters_behind"])), percent(row["flops_behind"])
            table.add_row(row["node"], row["operation"], row["module"], tensors, flops)
        parts.append(table)
    return Group(*(line(part) if isinstance(part, str) else part for part in parts))


def _some(rows: Sequence[Any]) -> Sequence[Any]:
    """At most `_SHOWN` rows, spread evenly."""
    if len(rows) <= _SHOWN:
        return rows
    return [rows[round(i * (len(rows) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
