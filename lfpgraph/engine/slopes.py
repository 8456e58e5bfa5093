"""The slopes of a recurrent layer's steps under a composite, as a program: one step is planned, and run backward from 1.

Its graph is planned as if it stood in the model, so the numbers are those of the steps written out one by one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_leaves, tree_structure

from ..composites.composite import Composite
from ..errors import RuleError
from ..graph.classes import classify
from ..graph.graph import OpGraph, Placeholder
from ..kernels import DECOMPOSITIONS
from ..numerics import epsilon_factor, stabilize
from ..passes.fastcalls import quick_module
from ..passes.functional import clean
from ..passes.fuse import fuse_pairs
from ..passes.gates import by_gate, leave_ones_out, merge_alike
from ..passes.inplace import write_in_place
from ..registry import Rule
from ..rules.recurrent import CELLS
from .call import Call
from .plan import make_plan
from .propagate import run_backward
from .static import NotedGraph, functional_graph, no_autocast
from .units import Unit

__all__ = ["Step", "backward_graph", "slopes_graph", "slopes_program", "step_graph"]

aten = torch.ops.aten
_ROWS = 101  # seldom a size of anything else


class Step(NamedTuple):
    """A step of a layer, and what is wanted of it.

    Attributes:
        kinds: of the states before it: "active", "weight-like" or "constant".
        folded: signals at x are to have the epsilon factor of the product x, which is then not to be taken again.
    """

    cell: str
    width: int
    biased: bool
    dtype: torch.dtype
    device: torch.device
    kinds: tuple[str, ...]
    folded: bool


@functools.lru_cache
@no_autocast()
def step_graph(
    cell: str, width: int, biased: bool, dtype: torch.dtype, device: torch.device, has_open_rows: bool = False
) -> OpGraph:
    """The graph of a step, as a model: both products, and what a cell makes of them. Its states are inputs.

    It is what `tracing.trace` would make of it, in a hundredth of the time. What open sizes need takes half a second to import.
    """
    record = NotedGraph({})
    of: dict[str, Any] = {"dtype": dtype, "device": device if has_open_rows else torch.device("cpu")}
    gates = {"lstm": 4, "gru": 3}.get(cell, 1) * width
    sizes = {"w_x": (gates, 1), "w": (gates, width)} | ({"b": (gates,)} if biased else {})
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        x, mode = torch.ones(3, 1, **of), FakeTensorMode(shape_env=ShapeEnv()) if has_open_rows else None
        if mode is not None:
            rows: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
            x = mode.from_tensor(x, symbolic_context=rows)
        with mode or contextlib.nullcontext():
            w_x, w, *b = (torch.ones((), **of).expand(size) for size in sizes.values())
            states = [x.new_ones(x.shape[0], width) for _ in range(2 if cell == "lstm" else 1)]
            for name, value in zip((*sizes, "x", "h", "c"), (w_x, w, *b, x, *states)):
                record.placeholder(name, value)
            products = []
            for given in ((x, w_x), (states[0], w, *b)):
                node = record.graph.call_function(aten.linear.default, record.of(given))
                products.append(x.new_empty(x.shape[0], gates))
                record.note(node, products[-1])
            with record:
                after = CELLS[cell](*products, *states)
        record.graph.output(record.of(after))
        inputs, outputs = range(1 + len(states)), range(len(after))
        placeholders = [*(Placeholder("parameter", name) for name in sizes), *(Placeholder("input", i) for i in inputs)]
        leaves, spec = [("tensor", i) for i in outputs], tree_structure(tuple(outputs))
        module = fx.GraphModule(nn.Module(), record.graph)
        return classify(OpGraph(module, placeholders, [], spec, leaves, {}, has_open_rows, "export"))


def slopes_graph(step: Step, composite: Composite, form: float | None) -> fx.GraphModule:
    """(x, z, states before), [rows, ...] each -> the slopes, in the order of `Slopes`."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        planned = _PlannedStep(step, composite, form, has_open_rows=True)
        x, *states = (node.meta["val"] for node in planned.inputs)
        with x.fake_mode:
            z = torch.empty_like(x)
        return _shortened(functional_graph(planned.slopes, [x, z, *states]), planned.gates)


def _shortened(program: fx.GraphModule, gates: int) -> fx.GraphModule:
    clean(program)
    merge_alike(program.graph)
    leave_ones_out(program.graph)
    by_gate(program.graph, gates)
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def slopes_program(step: Step, composite: Composite, form: float | None) -> Callable[..., Any]:
    """What `slopes_graph` makes, as quick as it can be on real tensors."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        program = _noted_slopes(step, composite, form) or slopes_graph(step, composite, form)
        fuse_pairs(program.graph)
        write_in_place(program.graph)
        program.recompile()
        return quick_module(program)


def _noted_slopes(step: Step, composite: Composite, form: float | None) -> fx.GraphModule | None:
    """What `slopes_graph` makes, in a tenth of the time; None if an operation holds the number of rows it was noted with."""
    planned = _PlannedStep(step, composite, form)
    program = _noted(planned.slopes, step, planned.gates, len(step.kinds), NotedGraph({}), _ROWS)
    program = _shortened(program, planned.gates)
    held = (value for node in program.graph.nodes for value in tree_leaves((node.args, node.kwargs)))
    return None if _ROWS in held else program


def backward_graph(step: Step, composite: Composite, form: float | None) -> fx.Graph:
    """A step backward as `rules.recurrent_loops.walk_in_loop` takes it, once it is compiled."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        planned = _PlannedStep(step, composite, form)
        record = NotedGraph(DECOMPOSITIONS)
        program = _noted(planned.backward, step, planned.gates, 3 * len(step.kinds), record, rows=3)
        clean(program)
        return program.graph


def _noted(function: Any, step: Step, gates: int, states: int, record: NotedGraph, rows: int) -> fx.GraphModule:
    """A function of x, z and some tensors like states, as a graph; noted on so many rows."""
    x = torch.ones(rows, gates * step.width, dtype=step.dtype)
    given = [x, x.clone(), *(torch.ones(rows, step.width, dtype=step.dtype) for _ in range(states))]
    for i, value in enumerate(given):
        record.placeholder(f"given_{i}", value)
    with record:
        found = function(*given)
    record.graph.output([None if s is None else record.of(s) for s in found])
    return fx.GraphModule(nn.Module(), record.graph)


class _PlannedStep:
    """One step under a composite.

    Args:
        form: of the signals that come to the states from outside.
        has_open_rows: whether the graph's own values are to leave the number of rows open.
    """

    def __init__(self, step: Step, composite: Composite, form: float | None, has_open_rows: bool = False) -> None:
        graph = step_graph(*step[:5], has_open_rows)
        places = dict(zip(graph.placeholder_nodes, graph.placeholders))
        states = sorted((p.target, n) for n, p in places.items() if p.kind == "input")[1:]
        for (i, node), kind in zip(states, step.kinds):
            if kind != "active":
                places[node] = Placeholder("parameter" if kind == "weight-like" else "buffer", f"state{i}")
        graph = classify(replace(graph, placeholders=list(places.values()), info={}))
        x, self.product = (n for n in graph.operations() if n.target is aten.linear.default)
        self.inputs = [x, *(n for _, n in states)]  # the product x, and the states before
        self.gates = x.meta["val"].shape[1] // step.width
        self.active = [n for (_, n), kind in zip(states, step.kinds) if kind == "active"]
        self.ends = [node for node in graph.output_nodes if isinstance(node, fx.Node)]  # the states after
        self.plan = make_plan(graph, composite, {*x.all_input_nodes, *self.inputs, *self.ends, self.product})
        self.form = form
        self.epsilon = composite.default.epsilon if step.folded else 0.0  # of the factor on the product x

    def slopes(self, x: Tensor, z: Tensor, *before: Tensor) -> list[Tensor | None]:
        """What `Slopes` holds, for steps that are rows of the tensors."""
        given, (h, *rest), form_h = (x, *before), self.ends, self._form(self.ends[0], None)
        of_h, passed, values = self._probe(given, z, h, form_h, stops=rest)
        if not rest:
            x_h, z_h, h_h = of_h
            return [None, x_h, None, z_h, None, None, h_h, None, None, *self._scales(values[h], form_h), None, None]
        (c,) = rest
        c_h, form = passed[c]
        form_c = self._form(c, form)
        if form is None and form_c is not None and c_h is not None:
            c_h = epsilon_factor(c_h, values[c], form_c)
        of_c, _, _ = self._probe(given, z, c, form_c, stops=[])
        pairs = [slope for pair in zip(of_h, of_c) for slope in pair]  # at x, z, h and c, of h and of c
        (scale_h, outer_h), (scale_c, outer_c) = self._scales(values[h], form_h), self._scales(values[c], form_c)
        return [c_h, *pairs[:4], None, *pairs[4:6], pairs[7], scale_h, outer_h, scale_c, outer_c]

    def backward(self, x: Tensor, z: Tensor, *given: Tensor) -> list[Tensor | None]:
        """The signals at x, at z, at h other than through the product (None for none), and at c.

        Args:
            given: the states before; the signals that come to the states after from the next step, and from outside.
        """
        n = len(self.ends)
        before, carried, outer = given[:n], given[n : 2 * n], given[2 * n :]
        c_h, x_h, x_c, z_h, z_c, _, h_h, h_c, c_c, *scales = self.slopes(x, z, *before)
        pairs = zip(carried, scales[::2], outer, scales[1::2])
        h, *rest = (_scaled(s, scale) + _scaled(from_outside, other) for s, scale, from_outside, other in pairs)
        rest = [c if c_h is None else c + c_h * h for c in rest]
        at_x, at_z, at_h = (_passed(slopes, (h, *rest)) for slopes in ((x_h, x_c), (z_h, z_c), (h_h, h_c)))
        at_x, at_z = (torch.zeros_like(x) if s is None else s for s in (at_x, at_z))
        return [at_x, at_z, at_h, *(torch.zeros_like(h) if c_c is None else c_c * c for c in rest)]

    def _form(self, end: fx.Node, inner: float | None) -> float | None:
        """The form of the sum of all signals at a state, where one comes from inside the step in the form `inner`."""
        unit = next(unit for unit in self.plan.units if unit.node is end)
        return unit.epsilon or (inner if inner is not None else self.form)

    def _scales(self, value: Tensor, form: float | None) -> tuple[Tensor | None, Tensor | None]:
        """By what raw signals at a state are multiplied to be in a form, and by what those from outside are."""
        if not form:
            return None, None
        scale = epsilon_factor(torch.ones_like(value), value, form)
        if self.form is None:
            return scale, scale
        return scale, None if self.form == form else stabilize(value, self.form) / stabilize(value, form)

    def _probe(
        self, given: Sequence[Tensor], z: Tensor, end: fx.Node, form: float | None, stops: Sequence[fx.Node]
    ) -> tuple[list[Tensor | None], dict[fx.Node, tuple[Tensor | None, float | None]], dict[fx.Node, Any]]:
        """Hand a signal of 1 back from a state.

        Args:
            stops: nodes that it does not pass.

        Returns:
            What arrives at x, z and the states before; what arrives at the stops, with its form; the nodes' values.
        """
        values: dict[fx.Node, Any] = dict(zip(self.inputs, given))
        known = {self.inputs[0]: given[0], self.product: z}
        arrived: dict[fx.Node, tuple[Tensor | None, float | None]] = dict.fromkeys((*stops, *known), (None, None))
        calls: list[Any] = []
        for unit in self.plan.units:
            if unit.node in arrived:
                unit = replace(unit, rule=Rule(functools.partial(_stop, arrived), needs_vjp=False))
            if unit.node is self.inputs[0]:
                unit = replace(unit, epsilon=self.epsilon)
            if unit.node in known:
                values[unit.node] = known[unit.node]
                calls.append(_Known(unit, values[unit.node]))
            else:
                calls.append(Call(unit, values))
                values[unit.node] = calls[-1].output
        signals = {end: torch.ones_like(values[end])}
        found = run_backward(self.plan, calls, values, signals, stabilized=form, observe=self._see_raw, direction=-1)
        x, form_x = arrived[self.inputs[0]]
        if form_x and not self.epsilon:
            raise RuleError("a stabilized signal leaves a recurrent step whose states before it are activations")
        return [x, arrived[self.product][0], *map(found.get, self.inputs[1:])], arrived, values

    def _see_raw(self, unit: Unit, call: Any, s: Any, answers: Sequence[Tensor | None]) -> None:
        """See that what leaves the step is in raw form, as `walk` takes it to be."""
        if call.answered is not None and any(
            node in self.active and answer is not None for node, answer in zip(unit.inputs, answers)
        ):
            raise RuleError(f"the rule of {unit.node.target} hands a stabilized signal out of a recurrent step")


def _scaled(s: Tensor, scale: Tensor | None) -> Tensor:
    return s if scale is None else s * scale


def _passed(slopes: Sequence[Tensor | None], signals: Sequence[Tensor]) -> Tensor | None:
    """The sum of the products, each signal as often as its slope has gates; None for nothing."""
    found = [k * torch.cat([s] * (k.shape[1] // s.shape[1]), 1) for k, s in zip(slopes, signals) if k is not None]
    return sum(found[1:], found[0]) if found else None


class _Known:
    """In place of the `Call` of a product, whose output is known."""

    def __init__(self, unit: Unit, output: Tensor) -> None:
        self.unit, self.output, self.inputs = unit, output, [None] * len(unit.inputs)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.form = self.answered = self.arrived = self.stabilized = None


def _stop(arrived: dict[fx.Node, Any], call: Any, s: Tensor, *args: Any, **kwargs: Any) -> list[None]:
    """In place of a rule: keep the signal, and hand on nothing."""
    arrived[call.unit.node] = s, call.form
    return [None] * len(call.inputs)
