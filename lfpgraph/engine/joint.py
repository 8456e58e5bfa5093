"""The joint graph of a plan put together of patterns: blocks that repeat are traced once (see `patterns`).

What makes the outputs comes in the order of running, the rest backwards.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ..tracing.export import quiet
from .patterns import Arrival, Pattern, Patterns, size_of
from .plan import Plan

__all__ = ["joint_of_patterns"]

aten = torch.ops.aten
Choice = tuple[Pattern | None, list[Arrival]]  # a unit's pattern, and what arrives at it


def joint_of_patterns(
    plan: Plan, examples: Sequence[Any], rewarded: Sequence[fx.Node], signals: Sequence[Tensor]
) -> fx.GraphModule:
    """Forward and feedback of a plan as one graph: values and the signals of the rewarded outputs -> outputs and feedback.

    Args:
        examples: fake values of the placeholders. rewarded: the nodes that signals are given to. signals: fake ones.
    """
    wanted = [node for node in plan.graph.placeholder_nodes if node in plan.wanted]
    with quiet():  # once for all traces: to set the levels of loggers takes a while
        patterns = Patterns(plan, examples, signals)
        chosen, pending = _choose(patterns, rewarded)
        return _Joint(plan, patterns, chosen).finish({node: pending.get(node) for node in wanted})


def _choose(patterns: Patterns, rewarded: Sequence[fx.Node]) -> tuple[list[Choice], dict[fx.Node, list[Arrival]]]:
    """For each unit its pattern and what arrives at it; and what arrives at each placeholder."""
    pending: dict[fx.Node, list[Arrival]] = {}
    for i, (node, s) in enumerate(zip(rewarded, patterns.signals)):
        pending.setdefault(node, []).append(Arrival(-1, i, None, None, s))
    units = patterns.plan.units
    chosen: list[Choice] = [(None, [])] * len(units)
    for i in reversed(range(len(units))):
        unit = units[i]
        arrived = pending.pop(unit.node, [])
        if unit.node.target is operator.getitem:
            source, index = unit.node.args
            pending.setdefault(source, []).extend(a._replace(index=index) for a in arrived)  # type: ignore[arg-type]
            continue
        arrived = arrived if unit.rule is not None else []
        pattern = patterns.of(i, arrived)
        chosen[i] = pattern, arrived
        for item, (place, result) in enumerate(zip(pattern.answers, pattern.results[pattern.n_outputs :])):
            value = result.meta["val"]
            pending.setdefault(unit.inputs[place], []).append(Arrival(i, item, None, pattern.form, value))
    return chosen, pending


class _Joint:
    """Puts patterns together."""

    def __init__(self, plan: Plan, patterns: Patterns, chosen: Sequence[Choice]) -> None:
        self.plan, self.patterns, self.chosen = plan, patterns, chosen
        self.graph, self.root = fx.Graph(), torch.nn.Module()
        self.env: dict[fx.Node, Any] = {}
        self.sizes: dict[Any, fx.Node] = {}  # nodes that hold an open size
        self.places: dict[
            Any, tuple[fx.Node, int]
        ] = {}  # where the open sizes are found among the values, not the signals
        for node in plan.graph.placeholder_nodes:
            value = patterns.values[node]
            self.env[node] = made = self._placeholder(node.name, value)
            for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
                self.places.setdefault(size_of(size), (made, dim))
            if isinstance(value, torch.SymInt):
                self.sizes[size_of(value)] = made
        self.signals = [self._placeholder(f"signal_{i}", s) for i, s in enumerate(patterns.signals)]

    def _placeholder(self, name: str, value: Any) -> fx.Node:
        made = self.graph.placeholder(name)
        made.meta["val"] = value
        return made

    def finish(self, ends: dict[fx.Node, list[Arrival] | None]) -> fx.GraphModule:
        """The graph that returns the outputs of the plan's graph, and the feedback of these placeholders."""
        locals_: list[dict[fx.Node, Any]] = [{} for _ in self.chosen]
        for i, (pattern, _) in enumerate(self.chosen):
            node = self.plan.units[i].node
            if pattern is None:
                source, index = node.args
                self.env[node] = self.env[source][index]  # type: ignore[index]
                continue
            self._bind(pattern, locals_[i], [self.env.get(n) for n in self.patterns.reads[i]])
            self._emit(pattern, pattern.forward, locals_[i])
            outputs = [locals_[i].get(r, r) for r in pattern.results[: pattern.n_outputs]]
            self.env[node] = outputs if isinstance(self.patterns.values[node], list | tuple) else outputs[0]

        def signal(a: Arrival) -> Any:
            if a.maker < 0:
                return self.signals[a.item]
            made, _ = self.chosen[a.maker]
            assert made is not None
            result = made.results[made.n_outputs + a.item]
            return locals_[a.maker].get(result, result)

        for i, (pattern, arrived) in reversed(list(enumerate(self.chosen))):
            if pattern is not None and arrived:
                reads = [self.env[n] for n in self.patterns.reads[i]]
                self._bind(pattern, locals_[i], [*reads, *self.signals, *map(signal, arrived)])
                self._emit(pattern, pattern.backward, locals_[i])
        found: list[Any] = []
        for node, arrivals in ends.items():
            if arrivals is None:
                found.append(None)
                continue
            pattern, local = self.patterns.of_end(node, arrivals), dict[fx.Node, Any]()
            self._bind(pattern, local, [self.env[node], *map(signal, arrivals)])
            self._emit(pattern, pattern.backward, local)
            found.append(local.get(pattern.results[0], pattern.results[0]))
        results = [self.env[n] if isinstance(n, fx.Node) else n for n in self.plan.graph.output_nodes]
        self.graph.output([*results, *found])
        return fx.GraphModule(self.root, self.graph)

    def _bind(self, pattern: Pattern, local: dict[fx.Node, Any], given: Sequence[Any]) -> None:
        local |= {placeholder: value for placeholder, value in zip(pattern.placeholders, given)}

    def _emit(self, pattern: Pattern, nodes: Sequence[fx.Node], local: dict[fx.Node, Any]) -> None:
        """Add copies of a pattern's nodes; each open size is there once."""
        for node in nodes:
            value = node.meta.get("val")
            size = size_of(value) if isinstance(value, torch.SymInt) else None
            known = None if size is None else self._size_node(size)
            if known is not None:
                local[node] = known
            elif node.op == "get_attr":
                name = f"_constant_{len(self.root._buffers)}"
                self.root.register_buffer(name, getattr(pattern.module, str(node.target)))
                local[node] = self.graph.get_attr(name)
                local[node].meta = dict(node.meta)
            else:
                local[node] = self.graph.node_copy(node, local.__getitem__)
                if size is not None:
                    self.sizes[size] = local[node]

    def _size_node(self, size: Any) -> Any:
        """The node of an open size, made of the placeholders' where it can be."""
        if size not in self.sizes and size in self.places:
            node, dim = self.places[size]
            self.sizes[size] = self.graph.call_function(aten.sym_size.int, (node, dim))
            self.sizes[size].meta["val"] = node.meta["val"].shape[dim]
        elif size not in self.sizes and isinstance(size, sympy.Add | sympy.Mul):
            op = operator.add if isinstance(size, sympy.Add) else operator.mul
            parts: list[Any] = [int(n) if n.is_Integer else self._size_node(n) for n in size.args]
            if None not in parts:
                self.sizes[size] = functools.reduce(lambda a, b: self._combined(op, a, b), parts)
        return self.sizes.get(size)

    def _combined(self, op: Callable[[Any, Any], Any], a: Any, b: Any) -> fx.Node:
        """The sum or product of two sizes."""
        made = self.graph.call_function(op, (a, b))
        made.meta["val"] = op(*(n.meta["val"] if isinstance(n, fx.Node) else n for n in (a, b)))
        return made
