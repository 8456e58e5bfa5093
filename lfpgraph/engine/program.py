"""The feedback program: the walk traced once into two static torch.fx graphs, forward and feedback.

Forward returns the model's outputs and what must be kept; feedback takes that and the signals at the outputs and
returns the feedback of every wanted parameter and the
signal of every wanted input. Both are ordinary graphs: print them, compile them, export them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental import _config as _fx_config
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import TraceError
from ..graph.graph import is_float, shape_of
from ..passes.fastcalls import quick_module
from ..passes.functional import make_functional
from ..passes.fuse import fuse_pairs
from ..passes.inductor import compile_program
from ..passes.inplace import write_in_place
from ..passes.online import split_online
from ..passes.partition import split
from ..passes.products import join_products
from ..tracing.export import quiet
from .plan import Plan
from .propagate import run_backward, run_forward

__all__ = ["Program", "make_program"]

aten = torch.ops.aten
_IDENTITIES = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}


@dataclass
class Program:
    """A plan made static.

    Attributes:
        plan: what was traced.
        forward: graph module, values of the placeholders -> [outputs..., saved...].
        feedback: graph module, [saved..., signals...] -> for each wanted placeholder a parameter's feedback,
            `abs(w) * s_w` or what its ruleset makes of it, or an input's signal (or None).
        n_outputs: how many of forward's results are the graph's outputs.
        signal_outputs: positions, among the graph's outputs, of those that take a signal.
        wanted: positions of the placeholders whose signal feedback returns.
        aliases: for each saved value, the position of the placeholder it is, or None.
    """

    plan: Plan
    forward: fx.GraphModule
    feedback: fx.GraphModule
    n_outputs: int
    signal_outputs: list[int]
    wanted: list[int]
    call_forward: Callable[..., Any]
    call_feedback: Callable[..., Any]

    def print(self) -> str:
        """The Python code of both graphs."""
        return f"{self.forward.code}\n{self.feedback.code}"


def make_program(
    plan: Plan,
    values: Sequence[Any],
    compile: bool = False,
    share: float | None = None,
    rewards: Sequence[fx.Node] | None = None,
) -> Program:
    """Trace the walk of a plan into a program.

    Args:
        plan: from `make_plan`.
        values: the placeholders' values; a graph that is not specialised to them is traced on its own fake ones.
        compile: run both graphs through inductor.
        share: of the bytes kept between them, how much to keep; the rest is computed again (see `passes.recompute`).
        rewards: feedback returns the reward that arrives at these nodes, None where none does, and nothing else.
    """
    if compile and plan.graph.tracer == "values":
        raise TraceError(
            "this model's graph is of one call's values and would be compiled at every step; wrap without compile=True"
        )
    nodes = plan.graph.placeholder_nodes
    fakes = list(values) if plan.graph.tracer == "values" else [node.meta["val"] for node in nodes]
    # What a rule differentiates by is said by the plan alone: no gradient is worked out for a parameter nobody asks about.
    fakes = [v.detach() if isinstance(v, Tensor) else v for v in fakes]
    fake_mode = next((v.fake_mode for v in fakes if hasattr(v, "fake_mode")), None)
    outputs = plan.graph.output_nodes
    first = len(plan.graph.mutations) + len(plan.graph.input_mutations)
    signal_outputs = [i for i in range(first, len(outputs)) if _takes_signal(plan, outputs[i])]
    wanted = [i for i, node in enumerate(nodes) if node in plan.wanted]
    n_outputs = len(outputs)

    def joint(values: list[Any], signals: list[Tensor]) -> list[Any]:
        results, calls, env = run_forward(plan, values)
        at_outputs: dict[fx.Node, Tensor | None] = {}
        for position, s in zip(signal_outputs, signals):
            node = outputs[position]
            before = at_outputs.get(node)
            at_outputs[node] = s if before is None else before + s
        if rewards is not None:
            record: dict[fx.Node, Any] = dict.fromkeys(rewards)
            run_backward(plan, calls, env, at_outputs, record=record)
            return [*results, *(record[node] for node in rewards)]
        found = run_backward(plan, calls, env, at_outputs, direction=-1)
        return [*results, *(feedback_of(nodes[i], found[nodes[i]], values[i]) for i in wanted)]

    rulesets = {
        node: plan.composite.parameter_ruleset(placeholder.target)
        for node, placeholder in zip(nodes, plan.graph.placeholders)
        if placeholder.kind == "parameter"
    }
    plan.wake(values)

    def feedback_of(node: fx.Node, s: Tensor | None, value: Tensor) -> Tensor | None:
        return s if s is None or node not in rulesets else rulesets[node].feedback(value, s, node in plan.asleep)

    def make_signals() -> list[Tensor]:
        fakes = [outputs[i].meta["val"] for i in signal_outputs]
        if fake_mode is None:
            return [torch.zeros([int(n) for n in f.shape], dtype=f.dtype, device=f.device) for f in fakes]
        return [torch.empty_like(f, memory_format=torch.contiguous_format) for f in fakes]

    def trace_joint(function: Callable[..., list[Any]]) -> fx.GraphModule:
        with quiet(), torch.no_grad(), _fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            if fake_mode is None:
                return make_fx(function, tracing_mode="real", _error_on_data_dependent_ops=False)(fakes, make_signals())
            with fake_mode:
                return make_fx(function, tracing_mode="real")(fakes, make_signals())

    try:
        traced = trace_joint(joint)
        if not make_functional(traced.graph):
            traced = trace_joint(functionalize(traced, remove="mutations"))
    except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode as error:
        raise TraceError(f"the feedback of this model depends on tensor values: {error}") from error
    _clean(traced)
    if share is None and fake_mode is not None and not plan.composite.online:
        join_products(traced.graph)
    _finish_early(traced.graph, n_outputs)
    online = plan.composite.online
    forward, feedback = (
        split_online(traced, len(fakes), n_outputs) if online else split(traced, len(fakes), n_outputs, share)
    )
    if compile:
        calls = compile_program(forward, feedback, n_outputs)
        return Program(plan, forward, feedback, n_outputs, signal_outputs, wanted, *calls)
    for half in (forward, feedback):
        fuse_pairs(half.graph)
        write_in_place(half.graph)
    feedback.graph.set_codegen(torch.fx.graph._BoxedCodeGen())
    forward.recompile()
    feedback.recompile()
    calls = quick_module(forward), quick_module(feedback)
    return Program(plan, forward, feedback, n_outputs, signal_outputs, wanted, *calls)


def _takes_signal(plan: Plan, node: Any) -> bool:
    return isinstance(node, fx.Node) and is_float(node.meta.get("val")) and node in plan.wanted


def _clean(traced: fx.GraphModule) -> None:
    """Drop detach and alias, which mean nothing without autograd, and what nobody uses; views become reshapes."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # the strides of real kernels may differ from the traced ones
        _shorten(node)
    traced.graph.eliminate_dead_code(is_impure_node=_has_side_effect)
    traced.recompile()


def _finish_early(graph: fx.Graph, n_outputs: int) -> None:
    """Scale each parameter's signal as soon as it is there, so that it is at hand and waits no longer than it must."""
    for result in graph.output_node().args[0][n_outputs:]:  # type: ignore[union-attr,index]
        if isinstance(result, fx.Node) and result.target is torch.ops.lfpgraph.scale_by_size.default:
            signal, w = result.args
            if signal.op != "placeholder" and w.op == "placeholder":
                signal.append(result)


def _shorten(node: fx.Node) -> None:
    """A transpose undone, a reshape of a reshape and a reshape to the same shape need one step less."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.op != "call_function":
        return
    if node.target is aten.reshape.default and shape_of(node) == shape_of(source):
        node.replace_all_uses_with(source)
        return
    if node.target is not source.target:
        return
    if node.target is aten.t.default:
        node.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
    elif node.target is aten.reshape.default:
        node.args = (source.args[0], *node.args[1:])


def _has_side_effect(node: fx.Node) -> bool:
    """Mutations whose result nobody uses have been functionalized away, so only the graph's ends must stay."""
    return node.op in ("placeholder", "output")
