"""Patterns: the units of a plan, each kind traced once, forward and the handing back of its signals.

Units share a pattern where all that their traces can depend on is equal: operations, arguments, rule, options, the inputs'
layouts in terms of the open sizes, and which signals arrive in which form. A rule that looks at the graph around its unit
(`call.sources`, `call.nodes`) has a pattern of its own for each unit.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..graph.graph import ancestors
from ..passes.nodes import users_of
from ..passes.partition import random_nodes
from .call import Call
from .plan import Plan
from .propagate import fit, hand_back
from .signals import Sum
from .static import functional_graph, on_fakes
from .units import Unit

__all__ = ["Arrival", "Pattern", "Patterns", "repeats", "size_of"]

aten = torch.ops.aten
_WORTH = 0.3  # to trace a unit by itself takes three times as long as within the whole


class Arrival(NamedTuple):
    """A signal on its way to a node.

    Attributes:
        maker: the place of the unit that answered it, or -1: it is given. item: which of its answers, or of the signals.
        index: at which item of a node that returns a tuple it arrives; None for the node itself.
        form: its epsilon, if it is in stabilized form. value: a fake tensor like it.
    """

    maker: int
    item: int
    index: Any
    form: float | None
    value: Tensor


@dataclass
class Pattern:
    """A unit's run and what it hands back, as a graph.

    Attributes:
        module: placeholders are the values that the unit reads, the signals of the outputs, and those that arrive.
        n_reads: how many of the placeholders are values; the others are signals.
        n_outputs: how many of its results are the unit's outputs; `answers` says for the others to which input they go.
        form: the epsilon of the answers, where they are in stabilized form. looked: its rule looked at the graph around it.
    """

    module: fx.GraphModule
    n_reads: int
    n_outputs: int
    answers: list[int] = field(default_factory=list)
    form: float | None = None
    looked: bool = False

    def __post_init__(self) -> None:
        nodes = list(self.module.graph.nodes)
        self.placeholders = [node for node in nodes if node.op == "placeholder"]
        self.results: list[Any] = list(nodes[-1].args[0])
        ahead = ancestors([r for r in self.results[: self.n_outputs] if isinstance(r, fx.Node)])
        of_signals = users_of(self.placeholders[self.n_reads :], nodes)
        ahead |= {n for n in random_nodes([n for n in nodes if n.op == "call_function"]) if n not in of_signals}
        ahead |= {n for n in nodes if n.target is operator.getitem and n.args[0] in ahead}
        body = [n for n in nodes if n.op in ("call_function", "get_attr")]
        self.forward, self.backward = ([n for n in body if (n in ahead) is is_ahead] for is_ahead in (True, False))


class _WatchedCall(Call):
    """A unit's run that notices a rule which looks at the graph around it."""

    looked = False

    def __init__(self, unit: Unit, values: dict[fx.Node, Any]) -> None:
        super().__init__(unit, values)
        del self.nodes, self.sources

    def __getattr__(self, name: str) -> Any:
        if name not in ("nodes", "sources"):
            raise AttributeError(name)
        self.looked = True
        return self.unit.nodes if name == "nodes" else self.unit.inputs


class Patterns:
    """Traces the units of a plan.

    Args:
        examples: fake values of the placeholders. signals: fake signals of the model's outputs.
    """

    def __init__(self, plan: Plan, examples: Sequence[Any], signals: Sequence[Tensor]) -> None:
        self.plan, self.signals = plan, list(signals)
        self.values: dict[fx.Node, Any] = dict(zip(plan.graph.placeholder_nodes, examples))
        self.kept: dict[Any, Pattern] = {}
        self.outputs: dict[Any, Any] = {}
        self.rulesets: list[Any] = []  # of parameters: compared, since they have no hash
        self.keys: list[Any] = []
        self.reads = [_reads(unit) for unit in plan.units]
        with on_fakes(examples):
            for unit, reads in zip(plan.units, self.reads):
                self.keys.append(self._run(unit, reads))

    def _run(self, unit: Unit, reads: list[fx.Node]) -> Any:
        """Give a unit's node its fake value; returns what the unit's run and rule depend on."""
        if unit.node.target is operator.getitem:
            source, index = unit.node.args
            self.values[unit.node] = self.values[source][index]  # type: ignore[index]
            return None
        known = [_layout(self.values[node]) for node in reads if node in self.values]
        key = (_unit_key(unit, reads), tuple(known))
        if key not in self.outputs:
            self.outputs[key] = Call(unit, self.values).output
        self.values[unit.node] = self.outputs[key]
        return key

    def of(self, i: int, arrived: Sequence[Arrival]) -> Pattern:
        """The pattern of the unit at a place, for what arrives at it."""
        known = tuple(_layout(self.values[node]) for node in self.reads[i])  # of a relu behind the unit, too
        key = (self.keys[i], known, tuple((a.index, a.form, _layout(a.value)) for a in arrived))
        found = self.kept.get(key)
        if found is None or found.looked:
            found = self.kept[key] = self._trace(self.plan.units[i], self.reads[i], arrived)
        return found

    def _trace(self, unit: Unit, reads: list[fx.Node], arrived: Sequence[Arrival]) -> Pattern:
        facts: dict[str, Any] = {}
        n_signals = len(self.signals)

        def run(*given: Any) -> list[Any]:
            values = dict(zip(reads, given))
            call = _WatchedCall(unit, values)
            call.given, call.direction = list(given[len(reads) : len(reads) + n_signals]), -1
            values[unit.node] = call.output
            outputs = list(call.output) if isinstance(call.output, list | tuple) else [call.output]
            facts["n_outputs"] = len(outputs)
            if not arrived:
                return outputs
            total = Sum()
            for a, s in zip(arrived, given[len(reads) + n_signals :]):
                at = total if a.index is None else total.items.setdefault(a.index, Sum())
                at.add(s, a.form, call.output if a.index is None else call.output[a.index])
            _, answers, facts["form"] = hand_back(self.plan, call, total, values)
            facts["answers"] = [i for i, a in enumerate(answers) if a is not None and unit.wanted[i]]
            facts["looked"] = call.looked
            return outputs + [fit(self.plan, call, i, answers[i]) for i in facts["answers"]]  # type: ignore[arg-type]

        examples = [*(self.values[node] for node in reads), *self.signals, *(a.value for a in arrived)]
        return Pattern(self._graph(run, examples), len(reads), **facts)

    def _graph(self, run: Callable[..., Any], examples: Sequence[Any]) -> fx.GraphModule:
        """Trace on copies: units that are alike have the same fake values, and a tracer tells arguments by identity."""
        with on_fakes(examples):
            own = [value.detach() if isinstance(value, Tensor) else value for value in examples]
        return functional_graph(run, own)

    def of_end(self, node: fx.Node, arrived: Sequence[Arrival]) -> Pattern:
        """The pattern of what a placeholder makes of the signals that arrive at it."""
        ruleset = self.plan.rulesets.get(node)
        layouts = tuple((a.form, _layout(a.value)) for a in arrived)
        if ruleset not in self.rulesets:
            self.rulesets.append(ruleset)
        key = (self.rulesets.index(ruleset), node in self.plan.asleep, _layout(self.values[node]), layouts)
        if key not in self.kept:

            def run(value: Any, *signals: Tensor) -> list[Any]:
                total = Sum()
                for a, s in zip(arrived, signals):
                    total.add(s, a.form, value)
                arrived_in_all = total.total()
                assert arrived_in_all is not None
                return [self.plan.feedback(node, value, arrived_in_all)]

            self.kept[key] = Pattern(self._graph(run, [self.values[node], *(a.value for a in arrived)]), 1, 0, [0])
        return self.kept[key]


def repeats(plan: Plan) -> bool:
    """Whether so many units of a plan are alike that patterns are worth their while."""
    return len({_kind(unit) for unit in plan.units}) <= _WORTH * len(plan.units)


def _kind(unit: Unit) -> Any:
    reads = _reads(unit)
    return _unit_key(unit, reads), tuple(_layout(node.meta.get("val")) for node in reads)


def _reads(unit: Unit) -> list[fx.Node]:
    """The nodes whose values a unit reads, each once."""
    inside = set(unit.nodes)
    found = [n for node in unit.nodes for n in node.all_input_nodes if n not in inside]
    found += [
        *unit.inputs,
        *unit.zeroed_by,
        *unit.references,
        *([unit.rectified] if unit.rectified is not None else []),
    ]
    return list(dict.fromkeys(n for n in found if n not in inside))


def _unit_key(unit: Unit, reads: list[fx.Node]) -> Any:
    """What a unit is, in terms of the places of what it reads."""
    places: dict[fx.Node, Any] = {node: ("read", i) for i, node in enumerate(reads)}
    places |= {node: ("made", i) for i, node in enumerate(unit.nodes)}
    rule = unit.rule
    return (
        tuple((n.target, _frozen(n.args, places), _frozen(n.kwargs, places)) for n in unit.nodes),
        rule and (_function(rule.handler), rule.needs_vjp, rule.own_stabilizer, rule.constants, id(rule.family)),
        (unit.active, unit.weightlike, unit.wanted, unit.epsilon, unit.option_epsilon, unit.ends_layer, unit.origin),
        (id(unit.family), *(places[n] for n in (*unit.inputs, *unit.zeroed_by, *unit.references))),
        None if unit.rectified is None else places.get(unit.rectified),
    )


def _frozen(value: Any, places: dict[fx.Node, Any]) -> Any:
    """An argument as something to look up."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, list | tuple):
        return tuple(_frozen(item, places) for item in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(item, places)) for key, item in value.items())
    if isinstance(value, slice):
        return "slice", *(_frozen(item, places) for item in (value.start, value.stop, value.step))
    return type(value), repr(value)  # 1, 1.0 and True differ, and so do 0.0 and -0.0


def _function(function: Any) -> Any:
    """A rule's function by what it does: two made in the same way of the same things are equal."""
    if isinstance(function, functools.partial):
        named = tuple((name, _function(value)) for name, value in function.keywords.items())
        return _function(function.func), tuple(map(_function, function.args)), named
    if isinstance(function, FunctionType) or not isinstance(function, int | float | str | bool | None):
        return id(function)
    return type(function), repr(function)


def _layout(value: Any) -> Any:
    """What a trace can see of a value, apart from its data."""
    if isinstance(value, Tensor):
        sizes = tuple(map(size_of, (*value.shape, *value.stride(), value.storage_offset())))
        return sizes, value.dtype, value.device, value.is_conj(), value.is_neg()
    if isinstance(value, list | tuple):
        return type(value), *map(_layout, value)
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(value), value.node.expr
    return type(value), repr(value)


def size_of(size: Any) -> Any:
    """A size as something to look up: a number, or the expression of an open one."""
    return size.node.expr if isinstance(size, torch.SymInt) else size
