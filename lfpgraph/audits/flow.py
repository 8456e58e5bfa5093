"""How relevance flows from module to module, as a graph."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from ..composites.composite import Composite
from ..engine.call import Call
from ..engine.units import Unit
from ..errors import AttributionError
from ..graph.graph import OpGraph, is_float, maker_of, module_path
from .walked import reward_at, walk

if TYPE_CHECKING:
    import networkx

__all__ = ["relevance_flow"]

OUTPUT = "output"


def relevance_flow(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    *,
    most: int = 24,
    on_missing: str = "derive",
    fallback: str = "error",
) -> networkx.DiGraph:
    """The flow of an output's relevance over the operation graph, gathered by module.

    A node is a module, or a stretch of one: where a forward leaves a module and comes back to it, a new node begins
    ("encoder", "encoder (2)"), so that edges only lead onwards. Modules are cut off at the greatest depth that leaves at
    most `most` nodes. Edges lead the way the activations go; relevance goes against them.

    Args:
        model, inputs, target, composite, on_missing, fallback: as for `lfpgraph.attribute`.
        most: how many nodes of modules there may be, at least 1. Where even the root's parts are more, neighbours in the
            order of running are put together.

    Returns:
        Nodes have `kind` (the class of the module, "" of inputs and the output), `relevance` (what was handed to it, summed,
        in units of the output), `kept` (what stayed there: biases and
        other leaks; at inputs all of it) and `order` (of running). Edges have `relevance` (what was handed back over it).

    Raises:
        AttributionError: most is below 1. Those of `attribute`.
    """
    import networkx

    if most < 1:
        raise AttributionError(f"most must be at least 1, not {most}")
    messages: defaultdict[tuple[fx.Node, fx.Node], float] = defaultdict(float)

    def observe(unit: Unit, call: Call, s: Any, answers: Sequence[Any]) -> None:
        for node, x, wanted, answer in zip(unit.inputs, call.inputs, unit.wanted, answers):
            if answer is not None and wanted and is_float(x):
                messages[maker_of(node), unit.node] += float(reward_at(answer, x, call.answered).sum())

    walked = walk(model, inputs, target, composite, observe, on_missing=on_missing, fallback=fallback)
    touched = {node for pair in messages for node in pair} | {maker_of(node) for node in walked.starts}
    places, paths = _places(walked.graph, touched, most)
    kinds = {path or "model": type(module).__name__ for path, module in model.named_modules()}
    flow = networkx.DiGraph()
    for name in dict.fromkeys(places.values()):
        flow.add_node(name, relevance=0.0, kept=0.0, order=len(flow), kind=kinds.get(paths.get(name, ""), ""))
    flow.add_node(OUTPUT, relevance=0.0, kept=0.0, order=len(flow))
    edges: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (source, user), size in messages.items():
        edges[places[source], places[user]] += size
    for node, relevance in walked.starts.items():
        edges[places[maker_of(node)], OUTPUT] += float(relevance.sum())
        flow.nodes[OUTPUT]["relevance"] += float(relevance.sum())
    for (place, later), size in edges.items():
        if place != later:
            flow.add_edge(place, later, relevance=size)
    for name, facts in flow.nodes(data=True):
        handed = sum(size for _, _, size in flow.out_edges(name, data="relevance"))
        facts["relevance"] = handed if name != OUTPUT else facts["relevance"]
        facts["kept"] = facts["relevance"] - sum(size for _, _, size in flow.in_edges(name, data="relevance"))
    return flow


def _places(graph: OpGraph, touched: set[fx.Node], most: int) -> tuple[dict[fx.Node, str], dict[str, str]]:
    """The name that each touched node is shown under, an input's own or that of a stretch of a module; and each stretch's module.

    There are at most `most` stretches.
    """
    places: dict[fx.Node, str] = {}
    ordered = [node for node in graph.graph.nodes if node in touched]
    names = {node: str(p.target) for node, p in zip(graph.placeholder_nodes, graph.placeholders)}
    for node in ordered:
        if node.op == "placeholder":
            places[node] = f"input {names[node]}" if names[node].isdigit() else names[node]
    operations = [node for node in ordered if node not in places]
    paths = [module_path(node).split(".") for node in operations]
    found = []
    for depth in range(max(map(len, paths), default=1), -1, -1):
        found = [(".".join(path[:depth]) or "model") for path in paths]
        if sum(1 for _ in itertools.groupby(found)) <= most:
            break
    stretches = [list(group) for _, group in itertools.groupby(range(len(found)), key=found.__getitem__)]
    while len(stretches) > most:
        pairs = zip(stretches[::2], itertools.chain(stretches[1::2], [[]]))
        stretches = [first + second for first, second in pairs]
    seen: Counter[str] = Counter()
    modules: dict[str, str] = {}
    for stretch in stretches:
        name = found[stretch[0]]
        seen[name] += 1
        shown = name if seen[name] == 1 else f"{name} ({seen[name]})"
        modules[shown] = name
        for i in stretch:
            places[operations[i]] = shown
    return places, modules
