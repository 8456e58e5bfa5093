"""The spiking neurons of a graph: thresholds, membranes, resets, and the ways through time.

Everything is found from the operations alone. A *threshold* is a run that is piecewise constant: each way from its
entry to its exit passes a comparison or a step (`(u > 1).float()`, `heaviside(u - 1)`, `round`). Its entry is the
*membrane*. Membranes that are reached from one another by elementwise operations are one neuron at several times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..registry import ACTIVATION, COMPARISON
from .graph import ACTIVE, WEIGHT, OpGraph, is_float
from .regions import Region, find_regions

__all__ = ["Neurons", "Threshold", "find_neurons", "spiking_regions"]

aten = torch.ops.aten
SPIKES = {aten.heaviside.default}
STEPS = SPIKES | {
    aten.ceil.default,
    aten.fake_quantize_per_channel_affine.default,
    aten.fake_quantize_per_tensor_affine.default,
    aten.floor.default,
    aten.round.decimals,
    aten.round.default,
    aten.sgn.default,
    aten.sign.default,
    aten.trunc.default,
}
SUMS = {aten.add.Scalar, aten.add.Tensor, aten.sub.Scalar, aten.sub.Tensor}


@dataclass(frozen=True)
class Threshold:
    """A piecewise constant run. `spikes`: made of comparisons or Heaviside alone, so that its output is on or off."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    spikes: bool

    @property
    def exit(self) -> fx.Node:
        return self.nodes[-1]

    def region(self) -> Region:
        return Region(ACTIVATION, self.entry, self.nodes)


@dataclass
class Neurons:
    """Thresholds of a graph, and the ways back from them.

    Attributes:
        resets: pairs (operation, operand): the operand is made of a membrane's own spikes, and comes back to it.
        earlier: pairs (operation, operand): the operand brings an earlier state of the membrane that the operation makes.
        times: how many states of its neuron come before a membrane.
    """

    thresholds: list[Threshold]
    resets: set[tuple[fx.Node, fx.Node]]
    earlier: set[tuple[fx.Node, fx.Node]]
    times: dict[fx.Node, int]

    @property
    def membranes(self) -> set[fx.Node]:
        return {t.entry for t in self.thresholds}


def find_neurons(graph: OpGraph, regions: list[Region] | None = None) -> Neurons:
    """Thresholds, reset paths and paths through time of a classified graph, whose usual regions may be given."""
    thresholds = _thresholds(graph, find_regions(graph) if regions is None else regions)
    if not thresholds:
        return Neurons([], set(), set(), {})
    membranes = {t.entry: i for i, t in enumerate(thresholds)}
    exits = {t.exit: t.entry for t in thresholds}
    inside = {node for t in thresholds for node in t.nodes}
    return Neurons(thresholds, _resets(graph, membranes, exits, inside), *_earlier(graph, membranes, inside))


def _thresholds(graph: OpGraph, regions: list[Region]) -> list[Threshold]:
    taken = {node for region in regions for node in region.nodes}
    found = [Threshold(r.entry, r.nodes, _on_or_off(r.nodes)) for r in regions if _is_constant_run(graph, r)]
    for node in graph.operations():
        if node.target in STEPS and node not in taken and graph.info[node].kind == ACTIVE:
            found.append(Threshold(node.args[0], (node,), node.target in SPIKES))  # type: ignore[arg-type]
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    return sorted((t for t in found if graph.info[t.exit].part == "network"), key=lambda t: order[t.exit])


def _is_constant_run(graph: OpGraph, region: Region) -> bool:
    """Whether every way from entry to exit passes a comparison or a step."""
    inside, smooth = set(region.nodes), {region.entry}
    for node in region.nodes:
        breaks = node.target in STEPS or graph.info[node].family is COMPARISON
        if not breaks and any(source in smooth for source in node.all_input_nodes):
            smooth.add(node)
    return region.exit not in smooth and any(node in inside for node in region.entry.users)


def _on_or_off(nodes: tuple[fx.Node, ...]) -> bool:
    """Whether a run makes its steps by comparisons and Heaviside alone."""
    return all(node.target in SPIKES or node.target not in STEPS for node in nodes)


def _active_inputs(graph: OpGraph, node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if graph.info[n].kind == ACTIVE]


def _is_elementwise(graph: OpGraph, node: fx.Node) -> bool:
    family = graph.info[node].family
    return family is not None and family.elementwise


def _resets(
    graph: OpGraph, membranes: dict[fx.Node, int], exits: dict[fx.Node, fx.Node], inside: set[fx.Node]
) -> set[tuple[fx.Node, fx.Node]]:
    """Operands made of a membrane's spikes alone, where another operand carries that membrane."""
    spikes: dict[fx.Node, set[fx.Node]] = {}  # membranes of which a node holds nothing but spikes; absent: other things
    carried: dict[fx.Node, set[fx.Node]] = {}  # membranes that an elementwise way leads from
    found = set()
    for node in graph.operations():
        sources = _active_inputs(graph, node)
        carried[node] = {node} if node in membranes else set()
        if node in exits:
            spikes[node] = {exits[node]}
        elif node not in inside and sources and _is_elementwise(graph, node):
            carried[node] |= set().union(*(carried.get(n, set()) for n in sources))
            if all(n in spikes for n in sources):
                spikes[node] = set().union(*(spikes[n] for n in sources))
            for source in sources:
                others = set().union(*(carried.get(n, set()) for n in sources if n is not source))
                if spikes.get(source, set()) & others:
                    found.add((node, source))
    return found


def _earlier(
    graph: OpGraph, membranes: dict[fx.Node, int], inside: set[fx.Node]
) -> tuple[set[tuple[fx.Node, fx.Node]], dict[fx.Node, int]]:
    """Operands on the way to a membrane that depend on the same neuron's membrane at an earlier time, in any way; and times."""
    carried: dict[fx.Node, set[fx.Node]] = {}
    neuron: dict[fx.Node, fx.Node] = {}
    seen: dict[fx.Node, int] = {}  # bits of the neurons that a node depends on
    bit: dict[fx.Node, int] = {}
    found: set[tuple[fx.Node, fx.Node]] = set()

    def cut(node: fx.Node, own: int) -> None:
        for operand in _active_inputs(graph, node):
            if not seen.get(operand, 0) & own:
                continue
            inner = _is_elementwise(graph, operand) and operand not in membranes
            parts = _active_inputs(graph, operand) if inner else []
            if any(not seen.get(part, 0) & own for part in parts):
                cut(operand, own)
            else:
                found.add((node, operand))

    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        sources = _active_inputs(graph, node)
        seen[node] = 0
        for source in sources:
            seen[node] |= seen[source]
        elementwise = _is_elementwise(graph, node) and node not in inside
        carried[node] = set().union(*(carried[n] for n in sources)) if sources and elementwise else set()
        if node in membranes:
            first = min((neuron[n] for n in carried[node]), key=lambda n: membranes[n], default=node)
            neuron[node] = first
            own = bit.setdefault(first, 1 << len(bit))
            if seen[node] & own:
                cut(node, own)
            seen[node] |= own
            carried[node] = {node}
    states: dict[fx.Node, int] = {}
    times = {}
    for membrane, first in neuron.items():
        times[membrane] = states[first] = states.get(first, -1) + 1
    return found, times


def spiking_regions(graph: OpGraph, neurons: Neurons) -> tuple[list[Region], list[Region]]:
    """The graph's regions, and the sums that make membranes as regions of their own (see `composites.spiking`)."""
    usual = find_regions(graph)
    taken = {node for region in usual for node in region.nodes}
    sums = []
    for membrane in sorted({t.entry for t in neurons.thresholds if t.spikes}, key=lambda n: n.name):
        if membrane.target in SUMS and membrane not in taken:
            region = _sum_of(graph, membrane, taken, neurons.membranes)
            if region is not None:
                sums.append(region)
                taken |= set(region.nodes)
    return usual, sums


def _sum_of(graph: OpGraph, root: fx.Node, taken: set[fx.Node], membranes: set[fx.Node]) -> Region | None:
    """The additions and subtractions that make a membrane, as far as nobody else reads them."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    nodes, leaves, stack = [], [], [root]
    while stack:
        node = stack.pop()
        inner = node.target in SUMS and node not in taken and is_float(node.meta.get("val"))
        inner = inner and all(graph.info[n].kind != WEIGHT for n in node.all_input_nodes)
        if node is root or (inner and len(node.users) == 1 and node not in membranes):
            nodes.append(node)
            stack += _active_inputs(graph, node)
        else:
            leaves.append(node)
    entry = min(leaves, key=order.__getitem__, default=None)
    return Region(ACTIVATION, entry, tuple(sorted(nodes, key=order.__getitem__))) if entry is not None else None
