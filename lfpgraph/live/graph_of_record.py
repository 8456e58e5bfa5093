"""A record as an operation graph, so that a live run is classified and planned as a traced model is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import BackwardCFunction

from ..errors import InputError
from ..graph.classes import classify
from ..graph.copies import copy_for_the_idle, copy_shared_comparisons
from ..graph.graph import OpGraph, Placeholder, ancestors
from ..graph.regions import let_entries_give_sizes
from ..registry import find_rule
from .notes import Ref, refs_in
from .record import Record

__all__ = ["LiveGraph", "graph_of"]


@dataclass
class LiveGraph:
    """An operation graph and where its nodes are in a record.

    Attributes:
        graph: the classified graph; its node values are on the meta device.
        value: the number of each node's value; nodes of several results have none.
        step: the step that made a node.
    """

    graph: OpGraph
    value: dict[fx.Node, int]
    step: dict[fx.Node, int]

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The values that the graph has; others lead to no output."""
        return frozenset(self.value.values())


def graph_of(record: Record, outputs: Sequence[int]) -> LiveGraph:
    """The graph of a recorded run whose tensor outputs have these numbers; what leads to none of them is left out.

    Raises:
        InputError: nothing in the run can carry reward.
    """
    graph = fx.Graph()
    nodes: dict[int, fx.Node] = {}
    placeholders = []
    templates = record.all_templates()
    constant = _made_of_no_input(record, templates)
    for i, leaf in enumerate(record.leaves):
        node = graph.placeholder(f"{leaf.kind}_{i}")
        node.meta["val"] = _meta(record, leaf.value)
        nodes[leaf.value] = node
        placeholders.append(Placeholder("constant" if leaf.value in constant else leaf.kind, leaf.name))
    step_of: dict[fx.Node, int] = {}
    for step, ((op, outs), (args, kwargs)) in enumerate(zip(record.steps, templates)):

        def node_of(ref: Any) -> Any:
            return nodes[int(ref)] if isinstance(ref, Ref) else ref

        node = graph.call_function(op)  # which would look through the arguments for numbers that only a tracer gives
        node.args, node.kwargs = _mapped(args, node_of), _mapped(kwargs, node_of)
        node.meta["nn_module_stack"] = {
            "": (f"model.{record.paths[step]}" if record.paths[step] else "model", nn.Module)
        }
        node.meta["stack_trace"] = record.lines[step]
        grad_fns = [record.edge_of[n][0] for n in outs if n in record.edge_of]
        node.meta["is_followed"] = bool(grad_fns)
        node.meta["has_derivative"] = any(not isinstance(grad_fn, BackwardCFunction) for grad_fn in grad_fns)
        step_of[node] = step
        if len(outs) == 1 and not _returns_several(op):
            node.meta["val"] = _meta(record, outs[0])
            nodes[outs[0]] = node
            continue
        node.meta["val"] = [_meta(record, n) if n >= 0 else None for n in outs]
        for i, n in enumerate(outs):
            if n >= 0:
                nodes[n] = item = graph.call_function(operator.getitem, (node, i))
                item.meta = {**node.meta, "val": node.meta["val"][i]}
                step_of[item] = step
    graph.output(tuple(nodes[n] for n in outputs))
    for leaf in record.leaves:
        if leaf.kind == "unrecorded" and leaf.value not in constant:
            for source in ancestors([nodes[n] for n in leaf.name if n in nodes]):
                source.meta["unseen_in"] = nodes[leaf.value]
    found = OpGraph(
        module=_Holder(graph),  # type: ignore[arg-type]
        placeholders=placeholders, mutations=[], out_spec=None, out_leaves=[], constants={},
        dynamic=False, tracer="live",
    )  # fmt: skip
    for node in reversed(graph.nodes):  # as `eliminate_dead_code`, which looks through the whole graph for faults first
        if not (node.users or node.op in ("placeholder", "output") or _is_part_of_loop(node)):
            graph.erase_node(node)
    values = {node: n for n, node in nodes.items()}
    for node, original in (copy_for_the_idle(found) | copy_shared_comparisons(found)).items():
        step_of[node] = step_of[original]
        if original in values:
            values[node] = values[original]
    let_entries_give_sizes(classify(found))
    left = set(graph.nodes)
    return LiveGraph(
        found,
        {node: n for node, n in values.items() if node in left},
        {node: step for node, step in step_of.items() if node in left},
    )


def _made_of_no_input(record: Record, templates: Sequence[Any]) -> set[int]:
    """Leaves that were made unrecorded, of values that were made of parameters and the like alone."""
    of_input = {-1} | {leaf.value for leaf in record.leaves if leaf.kind == "input"}
    unrecorded = {leaf.value: leaf.name for leaf in record.leaves if leaf.kind == "unrecorded"}
    if not unrecorded:
        return set()

    def is_of_input(number: int) -> bool:
        return number in of_input or not of_input.isdisjoint(unrecorded.get(number, ()))

    for (_, outs), arguments in zip(record.steps, templates):
        if any(is_of_input(n) for n in refs_in(list(arguments))):
            of_input.update(outs)
    return {number for number in unrecorded if not is_of_input(number)}


def _is_part_of_loop(node: fx.Node) -> bool:
    """Whether it is one of the results of an operation whose rule looks at all of them."""
    source = node.args[0] if node.target is operator.getitem else None
    rule = find_rule(source.target) if isinstance(source, fx.Node) else None
    return rule is not None and rule.made_by is not None


class _Holder:
    """Stands for a graph module: the graph is looked at and never run, so no code is generated for it."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph

    def recompile(self) -> None:
        """Nothing to do."""


def _mapped(value: Any, node_of: Any) -> Any:
    if isinstance(value, Ref):
        return node_of(value)
    if isinstance(value, Tensor):
        return None
    if isinstance(value, list | tuple):
        return type(value)([_mapped(item, node_of) for item in value])
    if isinstance(value, dict):
        return {key: _mapped(item, node_of) for key, item in value.items()}
    return value


def _returns_several(op: Any) -> bool:
    returns = op._schema.returns
    return len(returns) > 1 or (len(returns) == 1 and "List" in str(returns[0].type))


def _meta(record: Record, number: int) -> Tensor:
    shape = record.shapes[number]
    if any(type(size) is not int for size in shape):
        raise InputError(
            "it computes with nested tensors, whose rows differ in length; pad them, or give it row by row"
        )
    return torch.empty(shape, dtype=record.dtypes[number], device="meta")
