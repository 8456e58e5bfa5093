"""The feedback program: the walk traced once into two static torch.fx graphs, forward and feedback.

Forward returns the model's outputs and what must be kept; feedback takes that and the signals at the outputs and
returns the signal of every wanted placeholder. Both are ordinary graphs: print them, compile them, export them.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental import _config as _fx_config
from torch.fx.experimental.proxy_tensor import make_fx

from .errors import TraceError
from .plan import Plan
from .propagate import run_backward, run_forward
from .trace.capture import quiet
from .trace.graph import ancestors, is_float

__all__ = ["Program", "make_program"]

aten = torch.ops.aten
_IDENTITIES = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
_RECOMPUTED = {
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.reshape.default,
    aten.view.default,
}


@dataclass
class Program:
    """A plan made static.

    Attributes:
        plan: what was traced.
        forward: graph module, values of the placeholders -> [outputs..., saved...].
        feedback: graph module, [saved..., signals...] -> signal of each wanted placeholder (or None).
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


def make_program(plan: Plan, values: Sequence[Any], compile: bool = False) -> Program:
    """Trace the walk of a plan into a program.

    Args:
        plan: from `make_plan`.
        values: the placeholders' values for a value-specialised graph; otherwise the graph's own fake ones serve.
        compile: run both graphs through torch.compile.
    """
    nodes = plan.graph.placeholder_nodes
    fakes = list(values) if plan.graph.tracer == "values" else [node.meta["val"] for node in nodes]
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
        found = run_backward(plan, calls, env, at_outputs)
        return [*results, *(found[nodes[i]] for i in wanted)]

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
        if any(_is_mutation(node) and not node.users for node in traced.graph.nodes):
            traced = trace_joint(functionalize(traced, remove="mutations"))
    except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode as error:
        raise TraceError(f"the feedback of this model depends on tensor values: {error}") from error
    _clean(traced)
    return _split(plan, traced, len(fakes), n_outputs, signal_outputs, wanted, compile)


def _takes_signal(plan: Plan, node: Any) -> bool:
    return isinstance(node, fx.Node) and is_float(node.meta.get("val")) and node in plan.wanted


def _clean(traced: fx.GraphModule) -> None:
    """Drop detach and alias, which mean nothing without autograd, and what nobody uses; views become reshapes."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default  # the strides of real kernels may differ from the traced ones
        _shorten(node)
    traced.graph.eliminate_dead_code(is_impure_node=_has_side_effect)
    traced.recompile()


def _shorten(node: fx.Node) -> None:
    """A transpose undone, a reshape of a reshape and a reshape to the same shape need one step less."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or node.op != "call_function":
        return
    if node.target is aten.reshape.default and _shape(node) == _shape(source):
        node.replace_all_uses_with(source)
        return
    if node.target is not source.target:
        return
    if node.target is aten.t.default:
        node.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
    elif node.target is aten.reshape.default:
        node.args = (source.args[0], *node.args[1:])


def _shape(node: fx.Node) -> list[str] | None:
    value = node.meta.get("val")
    return [str(size) for size in value.shape] if isinstance(value, Tensor) else None


def _is_mutation(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _has_side_effect(node: fx.Node) -> bool:
    """Mutations whose result nobody uses have been functionalized away, so only the graph's ends must stay."""
    return node.op in ("placeholder", "output")


def _split(
    plan: Plan,
    traced: fx.GraphModule,
    n_values: int,
    n_outputs: int,
    signal_outputs: list[int],
    wanted: list[int],
    compile: bool,
) -> Program:
    """Cut the joint graph: ancestors of the outputs are forward, the rest is feedback, views are computed twice."""
    nodes = list(traced.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    values, signals = placeholders[:n_values], placeholders[n_values:]
    results = list(nodes[-1].args[0])
    from_signals = _users_of(signals, nodes)
    ahead = ancestors([r for r in results[:n_outputs] if isinstance(r, fx.Node)])
    ahead |= {n for n in _random_nodes(nodes) if n not in from_signals}
    ahead |= {n for n in nodes if n.target is operator.getitem and n.args[0] in ahead}
    feedback_nodes = [n for n in nodes if n.op not in ("placeholder", "output") and n not in ahead]
    recompute = _views_to_recompute(feedback_nodes, ahead)
    inside = set(feedback_nodes) | recompute
    available = set(ahead) | set(values)
    saved: list[fx.Node] = []
    for node in itertools.chain(recompute, feedback_nodes):
        saved += [n for n in node.all_input_nodes if n in available and n not in inside and n not in saved]
    saved += [r for r in results[n_outputs:] if isinstance(r, fx.Node) and r in available and r not in saved]
    order = {node: i for i, node in enumerate(nodes)}
    saved.sort(key=order.__getitem__)
    body = sorted(inside, key=order.__getitem__)
    forward = _build(
        traced,
        values,
        [n for n in nodes if n in ahead and n.op != "placeholder"],
        results[:n_outputs] + saved,
    )
    feedback = _build(traced, [*saved, *signals], body, results[n_outputs:], boxed=not compile)
    calls: list[Callable[..., Any]] = [forward, feedback]
    if compile:
        calls = [torch.compile(forward, dynamic=True), torch.compile(feedback, dynamic=True)]
    boxed = calls[1] if not compile else (lambda inputs: calls[1](*inputs))
    return Program(plan, forward, feedback, n_outputs, signal_outputs, wanted, calls[0], boxed)


def _users_of(roots: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(roots)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _random_nodes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Random operations and what they need: drawn in the forward pass, never again."""
    random = [
        n
        for n in nodes
        if isinstance(n.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in n.target.tags
    ]
    return ancestors(random)


def _views_to_recompute(feedback: Sequence[fx.Node], ahead: set[fx.Node]) -> set[fx.Node]:
    """Views among what feedback needs of forward: cheaper to take again than to keep."""
    found: set[fx.Node] = set()
    stack = [source for node in feedback for source in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node in ahead and node not in found and node.op == "call_function" and node.target in _RECOMPUTED:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _build(
    owner: fx.GraphModule,
    inputs: Sequence[fx.Node],
    body: Sequence[fx.Node],
    results: Sequence[Any],
    boxed: bool = False,
) -> fx.GraphModule:
    """A graph module of `body` with `inputs` as placeholders."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        env[node] = graph.placeholder(node.name)
        env[node].meta = dict(node.meta)
    for node in body:
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output([env[r] if isinstance(r, fx.Node) else r for r in results])
    graph.lint()
    if boxed:
        graph.set_codegen(torch.fx.graph._BoxedCodeGen())
    module = fx.GraphModule(owner, graph)
    return module
