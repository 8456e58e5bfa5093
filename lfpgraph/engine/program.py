"""The feedback program: the walk traced once into two static torch.fx graphs, forward and feedback.

Forward returns the model's outputs and what must be kept. Feedback takes that and the signals at the outputs, and returns
the feedback of every wanted parameter and the signal of every wanted input. Both are ordinary graphs: print them, compile
them, export them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import TraceError, first_line
from ..graph.graph import OpGraph, ancestors, is_float
from ..passes.fastcalls import quick_module
from ..passes.functional import clean
from ..passes.fuse import fuse_pairs, join_scalings
from ..passes.inductor import compile_program
from ..passes.inplace import raise_counters, storages, write_in_place, write_statistics
from ..passes.nodes import is_fresh
from ..passes.online import split_online
from ..passes.partition import split
from ..passes.products import compute_once, join_products
from ..passes.recompute import Share
from .joint import joint_of_patterns
from .patterns import repeats
from .plan import Plan
from .propagate import run_backward, run_forward
from .recurrent import keep_sums
from .static import functional_graph, no_autocast, on_fakes

__all__ = ["Program", "make_program"]


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
        call_forward: what runs `forward`, made quick or compiled; called with the values.
        call_feedback: the same of `feedback`; called with one list, which it empties.
        written: positions of the buffers that `call_forward` writes to itself; their new values, among the outputs, are None.
    """

    plan: Plan
    forward: fx.GraphModule
    feedback: fx.GraphModule
    n_outputs: int
    signal_outputs: list[int]
    wanted: list[int]
    call_forward: Callable[..., Any]
    call_feedback: Callable[..., Any]
    written: frozenset[int] = frozenset()

    @cached_property
    def reached_from(self) -> list[frozenset[int]]:
        """For each wanted placeholder, the positions of the outputs that it leads to."""
        graph = self.plan.graph
        outputs, nodes = graph.output_nodes, graph.placeholder_nodes
        behind = {i: ancestors([outputs[i]]) for i in self.signal_outputs}
        return [frozenset(i for i, before in behind.items() if nodes[place] in before) for place in self.wanted]

    @cached_property
    def is_fresh(self) -> list[bool]:
        """For each value that forward saves, whether it is sure to lie in memory of its own, apart from inputs and outputs."""
        results: Any = self.forward.graph.output_node().args[0]
        outputs, saved = results[: self.n_outputs], results[self.n_outputs :]
        storage = storages(self.forward.graph.nodes)
        made = [node for node in outputs if isinstance(node, fx.Node) and node.op != "placeholder"]
        taken = {storage[node] for node in made}
        apart = all(map(is_fresh, made))
        return [apart and isinstance(n, fx.Node) and is_fresh(n) and storage[n] not in taken for n in saved]

    @cached_property
    def watched(self) -> list[bool | None]:
        """For each value that forward saves, whether it is an input or an output, whose later changes matter.

        None where only a look at the value tells.
        """
        results: Any = self.forward.graph.output_node().args[0]
        outputs, saved = results[: self.n_outputs], results[self.n_outputs :]
        found: list[bool | None] = []
        for node, fresh in zip(saved, self.is_fresh):
            value = node.meta.get("val") if isinstance(node, fx.Node) else node
            given = node in outputs or (isinstance(node, fx.Node) and node.op == "placeholder")
            number = isinstance(value, int | float | bool | torch.SymInt)
            found.append(False if number or fresh else True if given and isinstance(value, Tensor) else None)
        return found

    @cached_property
    def changing(self) -> list[int]:
        """The positions of the buffers whose new values are written to them after the forward."""
        return [i for i in self.places["written"] if i not in self.written]

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """The positions of the placeholders of each kind, "written" those of the buffers that the model writes to."""
        graph = self.plan.graph
        found: dict[str, list[int]] = {kind: [] for kind in ("parameter", "buffer", "input", "constant", "written")}
        for i, placeholder in enumerate(graph.placeholders):
            found[placeholder.kind].append(i)
            if placeholder.kind == "buffer" and placeholder.target in graph.mutations:
                found["written"].append(i)
        return found

    def print(self) -> str:
        """The Python code of both graphs."""
        return f"{self.forward.code}\n{self.feedback.code}"


@no_autocast()
def make_program(
    plan: Plan,
    values: Sequence[Any],
    compile: bool = False,
    share: Share | None = None,
    rewards: Sequence[fx.Node] | None = None,
    written_out: Mapping[Any, Callable[..., Any]] | None = None,
    writes: bool = False,
    once: bool = False,
) -> Program:
    """Trace the walk of a plan into a program.

    Args:
        plan: from `make_plan`.
        values: the placeholders' values; a graph that is not specialised to them is traced on its own fake ones.
        compile: run both graphs through inductor.
        share: how much to keep between them; the rest is computed again (see `passes.recompute`).
        rewards: feedback returns the reward that arrives at these nodes, None where none does, and nothing else.
        written_out: what operations are written out as, so that autograd can follow the program; nothing is fused then, and
            nothing written in place.
        writes: the forward may write to the model's buffers itself, where it runs operation by operation.
        once: feedback runs several times for each forward (see `passes.partition.split`).
    """
    if compile and plan.graph.tracer == "values":
        raise TraceError(
            "this model's graph is of one call's values and would be compiled at every step; wrap without compile=True"
        )
    nodes, outputs = plan.graph.placeholder_nodes, plan.graph.output_nodes
    first = len(outputs) - len(plan.graph.user_output_nodes)
    signal_outputs = [i for i in range(first, len(outputs)) if _takes_signal(plan, outputs[i])]
    wanted = [i for i, node in enumerate(nodes) if node in plan.wanted]
    joint = _joint_graph(plan, values, [outputs[i] for i in signal_outputs], rewards, written_out)
    if written_out is None:
        keep_sums(joint.graph)
    writes = (
        writes and not compile and written_out is None and plan.graph.tracer == "export" and not plan.composite.online
    )
    buffers = _buffers(plan.graph) if writes else []
    written = write_statistics(joint.graph, buffers)
    forward, feedback = _halves(plan, joint, share, once)
    if written_out is not None:
        calls = forward.forward, lambda given: feedback.forward(*given)
    elif compile:
        calls = compile_program(forward, feedback, len(outputs), wanted)
    else:
        written |= raise_counters(forward.graph, buffers)
        calls = _made_quick(forward, feedback)
    return Program(plan, forward, feedback, len(outputs), signal_outputs, wanted, *calls, frozenset(written))


def _buffers(graph: OpGraph) -> list[int | None]:
    """For each of the graph's first outputs, the position of the buffer that it is the new value of."""
    places = {p.target: i for i, p in enumerate(graph.placeholders) if p.kind == "buffer"}
    return [places.get(name) for name in graph.mutations]


def _joint_graph(
    plan: Plan,
    values: Sequence[Any],
    rewarded: Sequence[fx.Node],
    rewards: Sequence[fx.Node] | None,
    written_out: Mapping[Any, Callable[..., Any]] | None,
) -> fx.GraphModule:
    """Forward and feedback as one graph: values and the signals of the rewarded outputs -> outputs and feedback."""
    nodes = plan.graph.placeholder_nodes

    def joint(*given: Any) -> list[Any]:
        own = given[: len(nodes)]
        results, calls, env = run_forward(plan, own)
        at: dict[fx.Node, Tensor | None] = {}
        for node, s in zip(rewarded, given[len(nodes) :]):  # a node may be an output twice
            at[node] = at[node] + s if node in at else s  # type: ignore[operator]
        if rewards is not None:
            record: dict[fx.Node, Any] = dict.fromkeys(rewards)
            run_backward(plan, calls, env, at, record=record)
            return [*results, *(record[node] for node in rewards)]
        found = run_backward(plan, calls, env, at, direction=-1)
        for node, value in zip(nodes, own):
            if (s := found.get(node)) is not None:
                found[node] = plan.feedback(node, value, s)
        return [*results, *found.values()]

    examples = list(values) if plan.graph.tracer == "values" else [node.meta["val"] for node in nodes]
    # The plan alone says whose signal is worked out, not what requires a gradient.
    examples = [value.detach() if isinstance(value, Tensor) else value for value in examples]
    with on_fakes(examples) as fake_mode:
        signals = [_signal_like(node.meta["val"], fake_mode is not None) for node in rewarded]
    try:
        if rewards is None and written_out is None and _has_patterns(plan):
            graph = joint_of_patterns(plan, examples, rewarded, signals)
        else:
            graph = functional_graph(joint, [*examples, *signals], written_out)
    except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode as error:
        raise TraceError(
            "the feedback of this model depends on tensor values, so it has no program; a rule may not branch on them: "
            f"{first_line(error)}"
        ) from error
    clean(graph)
    return graph


def _has_patterns(plan: Plan) -> bool:
    """Whether each unit can be traced by itself, on fake values, and many are alike."""
    held = any(node.op == "get_attr" for node in plan.graph.graph.nodes)
    return plan.graph.tracer == "export" and not held and not plan.composite.online and repeats(plan)


def _signal_like(output: Tensor, fake: bool) -> Tensor:
    """An example of the signal at an output: fake with its open sizes, or real."""
    if fake:
        return torch.empty_like(output, memory_format=torch.contiguous_format)
    return torch.zeros([int(n) for n in output.shape], dtype=output.dtype, device=output.device)


def _halves(
    plan: Plan, joint: fx.GraphModule, share: Share | None, once: bool
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The joint graph cut into forward and feedback."""
    n_values, n_outputs = len(plan.graph.placeholders), len(plan.graph.output_nodes)
    if plan.graph.tracer != "values" and not plan.composite.online:
        compute_once(joint.graph, n_outputs)
        join_products(joint.graph, little_memory=share is not None)
    _finish_early(joint.graph, n_outputs)
    if plan.composite.online:
        return split_online(joint, n_values, n_outputs)
    return split(joint, n_values, n_outputs, share, once)


def _made_quick(forward: fx.GraphModule, feedback: fx.GraphModule) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Copies of both graphs that run faster; the graphs themselves write in place where that is safe."""
    for half in (forward, feedback):
        fuse_pairs(half.graph)
        write_in_place(half.graph)
    join_scalings(feedback.graph)
    feedback.graph.set_codegen(torch.fx.graph._BoxedCodeGen())
    forward.recompile()
    feedback.recompile()
    return quick_module(forward).forward, quick_module(feedback, walk=True).forward


def _takes_signal(plan: Plan, node: Any) -> bool:
    return isinstance(node, fx.Node) and is_float(node.meta.get("val")) and node in plan.wanted


_SCALINGS = {torch.ops.lfpgraph.scale_by_size.default, torch.ops.lfpgraph.scale_by_floored_size.default}


def _finish_early(graph: fx.Graph, n_outputs: int) -> None:
    """Move the scaling of each parameter's signal right behind the signal, so that nothing it is made of waits for the end."""
    for result in graph.output_node().args[0][n_outputs:]:  # type: ignore[union-attr,index]
        if isinstance(result, fx.Node) and result.target in _SCALINGS:
            signal, w = result.args[:2]
            if signal.op != "placeholder" and w.op == "placeholder":  # type: ignore[union-attr]
                signal.append(result)  # type: ignore[union-attr]
